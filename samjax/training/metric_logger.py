"""Logs of a training run: a progress line per interval, metrics.jsonl, TensorBoard events, and curves at the end.

    workdir/metrics.jsonl         one JSON object per line: step and the values measured after that many updates
    workdir/tensorboard/          the same as events
    workdir/pictures/curves.png   loss terms and evaluation scores against the step

In a job of several processes only the first one logs.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import tensorboardX
from jax.sharding import Mesh

from samjax.storage import atomic
from samjax.storage.progress import format_duration

OF_ALL_STEPS = ('objects', 'skipped')  # metrics that are defined for steps without objects too
LOSSES = ('loss', 'focal', 'dice', 'iou')
SLOW_DATA = 0.05  # fraction of the time from which on waiting for data is reported


class MetricLogger:
    """Collects the metrics of each step and logs their means once per interval."""

    def __init__(
        self,
        workdir: str,
        start: int,
        num_steps: int,
        every: int,
        batch_size: int,
        rate: optax.Schedule,
        begun: float,
        utilization: Callable[[float], float],
    ):
        """Continues after update `start` of `num_steps`: what the files hold of later steps is dropped.

        every: steps per interval; batch_size: images per step; rate: the learning rate; begun: time.perf_counter() at
        the start of the process; utilization: images per second -> fraction of the devices' peak (MFU), or NaN.
        """
        self._is_first_process = jax.process_index() == 0
        self._num_steps, self._every, self._batch_size, self._rate = num_steps, every, batch_size, rate
        self._utilization = utilization
        self._sums: dict[str, float] = collections.defaultdict(float)
        self._count, self._count_with_objects = 0, 0  # steps since the last line
        self._timed = 0  # steps since `_since`
        self._since = math.nan
        self._begun = begun
        self._spent: dict[str, float] = collections.defaultdict(float)  # s, by what else than steps
        self._waited = 0.0  # s, for data since `_since`
        if self._is_first_process:
            self._workdir, folder = workdir, pathlib.Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            lines = [line for line in read_metrics(workdir) if line['step'] <= start]
            self._path = folder / 'metrics.jsonl'
            atomic.write_text(self._path, ''.join(json.dumps(line) + '\n' for line in lines))
            self._events = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=start + 1)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of update `step`; at the end of an interval logs their means since the last line.

        Steps without objects are counted; their losses and IoUs, which are 0, are not in the means.
        """
        for name, value in metrics.items():
            if metrics['objects'] or name in OF_ALL_STEPS:
                self._sums[name] += value
        self._count += 1
        self._count_with_objects += metrics['objects'] > 0
        if math.isnan(self._since):  # the first step of a process compiles: its time says nothing about the next
            self._since = time.perf_counter()
            self._spent['start'] = self._since - self._begun - sum(self._spent.values())
        else:
            self._timed += 1
        if step % self._every == 0 or step == self._num_steps:
            self._log_means(step)

    def values(self, step: int, values: dict[str, float]) -> None:
        """Writes values measured after `step` updates to the files, without those that are not finite."""
        if not self._is_first_process:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step} | finite) + '\n')
        for name, value in finite.items():
            self._events.add_scalar(name.replace('@', '_'), value, step)  # TensorBoard allows no @
        self._events.flush()

    def print(self, line: str) -> None:
        """Prints a line."""
        if self._is_first_process:
            print(line, flush=True)

    @contextlib.contextmanager
    def time_of(self, activity: str):
        """The time inside is not training: it counts as that of another `activity`."""
        begun = time.perf_counter()
        yield
        spent = time.perf_counter() - begun
        self._since += spent
        self._spent[activity] += spent

    @contextlib.contextmanager
    def waiting(self, is_idle: Callable[[], bool]):
        """The time inside is waiting for data, and is lost if the devices were idle at its end, as `is_idle` says."""
        begun = time.perf_counter()
        yield
        if is_idle() and not math.isnan(self._since):
            self._waited += time.perf_counter() - begun

    def finish(self) -> None:
        """Reports how the time of this process was used, and draws the curves of the whole run."""
        if self._is_first_process:
            self.print(goodput(time.perf_counter() - self._begun, self._spent))
            self.print(f'done: {draw_curves(self._workdir)}')

    def close(self) -> None:
        if self._is_first_process:
            self._events.close()

    def _log_means(self, step: int) -> None:
        count, with_objects = self._count, self._count_with_objects
        means = {name: total / (count if name in OF_ALL_STEPS else with_objects) for name, total in self._sums.items()}
        lr = float(self._rate(step - 1))
        now = time.perf_counter()
        per_second = self._timed / (now - self._since) if self._timed else math.nan
        waited = self._waited / (now - self._since)
        self._spent['data'] += self._waited
        self._sums.clear()
        self._count, self._count_with_objects = 0, 0
        self._timed, self._since, self._waited = 0, now, 0.0
        mfu = self._utilization(per_second * self._batch_size)
        speed = {'images_per_second': per_second * self._batch_size, 'mfu': mfu, 'data_wait': waited}
        known = {name: value for name, value in speed.items() if not math.isnan(per_second + value)}
        self.values(step, {f'train/{name}': value for name, value in ({'lr': lr} | means | known).items()})
        self.print(progress(step, self._num_steps, means, lr, per_second, self._batch_size, mfu))
        if with_objects < count:
            self.print(
                f'{count - with_objects} of the last {count} step(s) had no object and changed nothing: see samjax '
                'data check for images without masks'
            )
        if waited > SLOW_DATA:
            self.print(f'the devices waited {waited:.0%} of the time for data: raise --config.data.num_workers')


def progress(
    step: int, num_steps: int, means: dict[str, float], lr: float, per_second: float, batch_size: int, mfu: float
) -> str:
    """One line: step, speed (steps per second; NaN: not known yet), losses and time left."""
    means = collections.defaultdict(lambda: math.nan, means)  # without steps that had objects there are none
    terms = ', '.join(f'{name} {means[name]:.4f}' for name in LOSSES[1:])
    known = not math.isnan(per_second)
    speed = f'{per_second * batch_size:.1f} images/s' if known else '- images/s'
    speed += '' if math.isnan(mfu) else f' (MFU {mfu:.0%})'
    left = format_duration((num_steps - step) / per_second) if known else '-'
    return (
        f'step {step}/{num_steps} | {speed} | loss {means["loss"]:.4f} ({terms}) | '
        f'mask IoU {means["mask_iou_first"]:.3f} to {means["mask_iou_last"]:.3f} | lr {lr:.2e} | ETA {left}'
    )


def goodput(seconds: float, spent: dict[str, float]) -> str:
    """One line: the fraction of `seconds` that was training, and what else took time."""
    others = ', '.join(f'{activity} {format_duration(s)}' for activity, s in spent.items() if s >= 0.5)
    fraction = 1 - sum(spent.values()) / seconds
    return f'goodput {fraction:.1%} of {format_duration(seconds)}' + (f' (else: {others})' if others else '')


def parameter_table(params) -> str:
    """Counts of parameters by module, the first two names of each path, and their total."""
    counts: dict[str, int] = collections.defaultdict(int)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        counts['/'.join(name for name in names[:2] if name != 'value')] += math.prod(leaf.shape)
    counts['total'] = sum(counts.values())
    width = max(map(len, counts))
    return '\n'.join(f'{name:<{width}} {count:>13,}' for name, count in counts.items())


def device_line(mesh: Mesh) -> str:
    """Devices, processes and mesh of the run."""
    first = mesh.devices.flat[0]
    shape = ' x '.join(f'{name} {side}' for name, side in mesh.shape.items())
    return f'{mesh.size} x {first.device_kind} ({first.platform}) in {jax.process_count()} process(es), mesh {shape}'


def read_metrics(workdir: str) -> list[dict]:
    """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def draw_curves(workdir: str) -> pathlib.Path:
    """Draws workdir/pictures/curves.png from metrics.jsonl: losses left, mean IoU of evaluations right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_metrics(workdir)
    scores = [f'train/{name}' for name in ('mask_iou_first', 'mask_iou_last')]
    scores += sorted({name for line in lines for name in line if name.startswith('eval/') and 'miou' in name.lower()})
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    for axes, names, title in (
        (left, [f'train/{name}' for name in LOSSES], 'loss, and its terms without their weights'),
        (right, scores, 'mean IoU'),
    ):
        for name in names:
            points_K2 = np.array([(line['step'], line[name]) for line in lines if name in line]).reshape(-1, 2)
            axes.plot(*points_K2.T, marker='.', label=name)
        axes.set(xlabel='updates', title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    left.set_yscale('log')
    right.set_ylim(0, 1)
    path = pathlib.Path(workdir) / 'pictures' / 'curves.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
