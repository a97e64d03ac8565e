"""What a run tells: one progress line per interval, metrics.jsonl, TensorBoard events, and curves at the end.

    workdir/metrics.jsonl         one JSON object per line: step and whatever was measured after that many updates
    workdir/tensorboard/          the same as events
    workdir/pictures/curves.png   loss parts and evaluation scores against the step

In a job of several processes only the first one tells anything.
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

from samjax.training import checkpoints

LOSSES = ('loss', 'focal', 'dice', 'iou')
SLOW_DATA = 0.05  # share of the time, from which on waiting for data is worth a line


class Log:
    """Collects the metrics of each step and tells their means once per interval."""

    def __init__(
        self,
        workdir: str,
        start: int,
        steps: int,
        every: int,
        batch: int,
        rate: optax.Schedule,
        begun: float,
        utilisation: Callable[[float], float],
    ):
        """Continues after update `start` of `steps`: what the files hold of later steps is dropped.

        A line is told every `every` steps; `batch` is the number of images per step, `rate` the learning rate, `begun`
        when the process began to prepare for them (time.perf_counter) and `utilisation` makes images per second a
        share of what the devices could do, NaN where that is not known.
        """
        self._speaks = jax.process_index() == 0
        self._steps, self._every, self._batch, self._rate = steps, every, batch, rate
        self._utilisation = utilisation
        self._sums: dict[str, float] = collections.defaultdict(float)
        self._count = 0
        self._timed = 0  # steps since `_since`
        self._since = math.nan
        self._begun = begun
        self._spent: dict[str, float] = collections.defaultdict(float)  # s, by what else than steps
        self._waited = 0.0  # s, for data since `_since`
        if self._speaks:
            self._workdir, folder = workdir, pathlib.Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            lines = [line for line in read_metrics(workdir) if line['step'] <= start]
            self._path = folder / 'metrics.jsonl'
            checkpoints.write(self._path, ''.join(json.dumps(line) + '\n' for line in lines))
            self._events = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=start + 1)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of update `step`; at the end of an interval tells their means since the last line."""
        for name, value in metrics.items():
            self._sums[name] += value
        self._count += 1
        if math.isnan(self._since):  # the first step of a process compiles: its time says nothing about the next
            self._since = time.perf_counter()
            self._spent['start'] = self._since - self._begun - sum(self._spent.values())
        else:
            self._timed += 1
        if step % self._every == 0 or step == self._steps:
            self._tell(step)

    def values(self, step: int, values: dict[str, float]) -> None:
        """Writes values measured after `step` updates to the files."""
        if not self._speaks:
            return
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step} | values) + '\n')
        for name, value in values.items():
            self._events.add_scalar(name.replace('@', '_'), value, step)  # TensorBoard allows no @
        self._events.flush()

    def say(self, line: str) -> None:
        """Prints a line."""
        if self._speaks:
            print(line, flush=True)

    @contextlib.contextmanager
    def spends(self, on: str):
        """What happens inside is not training: it counts as time spent `on` something else."""
        begun = time.perf_counter()
        yield
        spent = time.perf_counter() - begun
        self._since += spent
        self._spent[on] += spent

    @contextlib.contextmanager
    def waits(self, is_idle: Callable[[], bool]):
        """Waiting for data inside is lost time if the devices were idle at its end, as `is_idle` says."""
        begun = time.perf_counter()
        yield
        if is_idle() and not math.isnan(self._since):
            self._waited += time.perf_counter() - begun

    def finish(self) -> None:
        """Says how the time of this process was used, and draws the curves of the whole run."""
        if self._speaks:
            self.say(goodput(time.perf_counter() - self._begun, self._spent))
            self.say(f'done: {draw_curves(self._workdir)}')

    def close(self) -> None:
        if self._speaks:
            self._events.close()

    def _tell(self, step: int) -> None:
        means = {name: total / self._count for name, total in self._sums.items()}
        lr = float(self._rate(step - 1))
        now = time.perf_counter()
        per_second = self._timed / (now - self._since) if self._timed else math.nan
        waited = self._waited / (now - self._since)
        self._spent['data'] += self._waited
        self._sums.clear()
        self._count, self._timed, self._since, self._waited = 0, 0, now, 0.0
        used = self._utilisation(per_second * self._batch)
        speed = {'images_per_second': per_second * self._batch, 'mfu': used, 'data_wait': waited}
        known = {name: value for name, value in speed.items() if not math.isnan(per_second + value)}
        self.values(step, {f'train/{name}': value for name, value in ({'lr': lr} | means | known).items()})
        self.say(progress(step, self._steps, means, lr, per_second, self._batch, used))
        if waited > SLOW_DATA:
            self.say(f'the devices waited {waited:.0%} of the time for data: raise --config.data.num_workers')


def progress(
    step: int, steps: int, means: dict[str, float], lr: float, per_second: float, batch: int, used: float
) -> str:
    """One line: where the run stands, how fast (steps per second; NaN: not known yet) and when it ends."""
    parts = ', '.join(f'{name} {means[name]:.4f}' for name in LOSSES[1:])
    known = not math.isnan(per_second)
    speed = f'{per_second * batch:.1f} images/s' if known else '- images/s'
    speed += '' if math.isnan(used) else f' (MFU {used:.0%})'
    left = duration((steps - step) / per_second) if known else '-'
    return (
        f'step {step}/{steps} | {speed} | loss {means["loss"]:.4f} ({parts}) | '
        f'mask IoU {means["mask_iou_first"]:.3f} to {means["mask_iou_last"]:.3f} | lr {lr:.2e} | ETA {left}'
    )


def duration(seconds: float) -> str:
    """3723 s -> '1 h 02 min'; 62 s -> '1 min 02 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes_left:02d} min'
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def goodput(seconds: float, spent: dict[str, float]) -> str:
    """One line: the share of `seconds` that was training, and what else took time."""
    others = ', '.join(f'{on} {duration(s)}' for on, s in spent.items() if s >= 0.5)
    share = 1 - sum(spent.values()) / seconds
    return f'goodput {share:.1%} of {duration(seconds)}' + (f' (else: {others})' if others else '')


def parameter_table(params) -> str:
    """Parameters by module: the first two parts of each path, their count, and the total."""
    counts: dict[str, int] = collections.defaultdict(int)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        counts['/'.join(name for name in names[:2] if name != 'value')] += math.prod(leaf.shape)
    counts['total'] = sum(counts.values())
    width = max(map(len, counts))
    return '\n'.join(f'{name:<{width}} {count:>13,}' for name, count in counts.items())


def device_line(mesh: Mesh) -> str:
    """What the run computes on."""
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
        (left, [f'train/{name}' for name in LOSSES], 'loss, and its parts without their weights'),
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
