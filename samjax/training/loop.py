"""The training loop: restore or initialise, then evaluate -> save -> next batch -> step -> log until done."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax.data import pipeline
from samjax.distributed import sharding
from samjax.errors import SamjaxError
from samjax.evaluation.eval_model import on_devices
from samjax.evaluation.eval_result import EvalOptions
from samjax.evaluation.tasks import interactive
from samjax.model import flops
from samjax.training import checkpoints
from samjax.training import metric_logger as logs
from samjax.training.checkpoints import Checkpoints
from samjax.training.compiled_step import CompiledTrainStep, build
from samjax.training.step import TrainState
from samjax.visualization import pictures

# What a run that was asked to stop exits with: the number of the signal says who asked.
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 75}  # Ctrl-C; preemption: "try again" of sysexits.h


class Stopped(Exception):
    """The run was asked to stop and has saved; `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Trains until update `config.train.num_steps` and returns the last state; the same call continues a stopped run.

    Files: see `samjax.training.checkpoints` and `samjax.training.metric_logger`; pictures of each evaluation in workdir/pictures.

    Raises:
        SamjaxError: a setting or file is wrong, too many steps had no finite loss, or the disk is full.
        Stopped: Ctrl-C was pressed or SIGTERM sent, to any process of the job; the state is saved.
    """
    begun = time.perf_counter()
    compiled = build(config)
    mesh, steps = compiled.mesh, config.train.num_steps
    batches = open_batches(config)
    evaluation = Evaluation(config, workdir, mesh)
    checkpoints = Checkpoints(workdir, config.train.max_to_keep, config)

    # Restore or initialise.
    if checkpoints.latest is None:
        state = initial_state(config, compiled)
    else:
        state = checkpoints.restore(compiled.state, batches)
    start = int(state.step)
    every, batch = config.train.log_every, config.train.batch_size
    log = logs.Log(workdir, start, steps, every, batch, compiled.rate, begun, utilisation(config, compiled))
    log.say(logs.parameter_table(state.params))
    log.say(f'{logs.device_line(mesh)}; {config.train.batch_size} images per step')
    log.say(f'{"continues" if start else "starts"} at step {start} of {steps} in {workdir}; the first step compiles')

    # Contract.  `done` updates lie behind the state.  Before the next batch is taken, the scores of this state are in
    # the log and the state is on its way to the disk, if they are due; so what a restored run finds is what it would
    # have made.  Metrics of a step, and whether a process was asked to stop, are read after the next one is dispatched,
    # so all processes know it before the same step; then time may be short, and nothing is evaluated.  Between batch
    # and dispatch nothing moves between host and device unless it says so.
    intervals = config.train.eval_every, config.train.save_every
    pending = Pending(log, config.train.max_skipped, checkpoints)
    trace = Trace(config.train.profile_steps, workdir)
    with contextlib.closing(log), contextlib.closing(batches), contextlib.closing(checkpoints), _signals() as asked:
        for done in range(start, steps):
            due_evaluation, due_save = (done > start and done % every == 0 for every in intervals)
            if due_evaluation or due_save:
                pending.settle()
            if pending.asked:
                checkpoints.save(state, batches)
                checkpoints.wait()
                raise Stopped(f'stopped and saved at step {done}; the same command continues', EXIT[pending.asked])
            if due_evaluation:
                with log.spends('evaluation'):
                    log.values(done, evaluation(state))
            if due_save:
                with log.spends('saving'):
                    checkpoints.save(state, batches)
            trace.before(done + 1, pending)
            with jax.transfer_guard('disallow'):
                with log.waits(pending.is_computed):
                    batch = next(batches)
                batch = sharding.to_global(batch, mesh)
                state, metrics = compiled.step(state, batch)
                vote = sharding.global_max(asked(), mesh)
            pending.settle()
            pending.add(done + 1, metrics, vote)
        pending.settle()
        trace.close()
        if start < steps:
            with log.spends('evaluation'):
                log.values(steps, evaluation(state))
            with log.spends('saving'):
                checkpoints.save(state, batches)
                checkpoints.wait()
        log.finish()
    return state


def initial_state(config: ConfigDict, compiled: CompiledTrainStep) -> TrainState:
    """A fresh state, with the parameters of the checkpoint that `config.train.init_from` names, if it does.

    Raises:
        SamjaxError: there is no checkpoint, or one of a model of another size.
    """
    state = compiled.init()
    if not config.train.init_from:
        return state
    wanted = compiled.state.params, compiled.state.buffers
    params, buffers, _ = checkpoints.restore_params(config.train.init_from, config, wanted)
    return dataclasses.replace(state, params=params, buffers=buffers)


def utilisation(config: ConfigDict, compiled: CompiledTrainStep) -> Callable[[float], float]:
    """Images per second -> share of the peak of all devices (MFU), NaN if that is not known."""
    peak = flops.peak(compiled.mesh.devices.flat[0].device_kind) or math.nan
    per_image = flops.train_flops(compiled.model, config.data.max_objects, config.prompts.rounds)
    return lambda images_per_second: images_per_second * per_image / (compiled.mesh.size * peak)


class Pending:
    """What the last dispatched step will say: its metrics, and whether a process was asked to stop."""

    def __init__(self, log: logs.Log, max_skipped: int, checkpoints: Checkpoints):
        self._log, self._max_skipped, self._checkpoints = log, max_skipped, checkpoints
        self._step, self._metrics, self._vote = 0, None, None
        self.asked = 0  # the signal that a process of the job got, as of the last step that was settled

    def add(self, step: int, metrics: dict[str, jax.Array], vote: jax.Array) -> None:
        """Takes what update `step` says, which may still be computed."""
        self._step, self._metrics, self._vote = step, metrics, vote

    def is_computed(self) -> bool:
        """Whether the devices are done with the step, so that they have nothing to do."""
        return self._metrics is None or self._metrics['loss'].is_ready()

    def settle(self) -> None:
        """Waits for it and logs it.

        Raises:
            SamjaxError: loss or gradient were not finite in too many steps in a row.
        """
        if self._metrics is None:
            return
        metrics = {name: float(value) for name, value in jax.device_get(self._metrics).items()}
        self.asked = int(jax.device_get(self._vote))
        self._metrics = None
        if metrics['skipped']:
            bad = next(name for name in ('loss', 'grad_norm') if not math.isfinite(metrics[name]))
            said = f'{bad} is {metrics[bad]} at step {self._step}'
            if metrics['skipped'] > self._max_skipped:
                last = self._checkpoints.latest
                kept = 'no checkpoint exists yet' if last is None else f'the last good checkpoint is step {last}'
                raise SamjaxError(
                    f'{said}, training stops ({kept}): lower --config.optimizer.lr or set --config.optimizer.clip_norm'
                )
            self._log.say(f'{said}: the step is skipped')
        self._log.step(self._step, metrics)


class Trace:
    """A profiler trace of steps `first` to `last` in workdir/profile; see it with `xprof --logdir`."""

    def __init__(self, steps: tuple[int, int], workdir: str):
        self._first, self._last = steps
        self._folder = str(pathlib.Path(workdir) / 'profile')
        self._running = False

    def before(self, step: int, pending: Pending) -> None:
        """To be called before update `step` begins."""
        if step == self._first:
            pending.settle()
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._last + 1:
            pending.settle()
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False


class Evaluation:
    """Scores of a state on the evaluation images; draws workdir/pictures/step_<step>.png."""

    def __init__(self, config: ConfigDict, workdir: str, mesh: Mesh):
        self._config, self._mesh = config, mesh
        limits = EvalOptions(max_images=config.eval.max_images, max_objects=config.eval.max_objects)
        self._interactive = interactive.open_interactive(config, interactive.open_source(config), limits)
        self._folder = pathlib.Path(workdir) / 'pictures'

    def __call__(self, state: TrainState) -> dict[str, float]:
        model = sharding.local_copy((state.params, state.buffers), self._mesh)
        segmenters = interactive.sam_segmenters('sam', self._config, on_devices(self._config, *model))
        outcome = self._interactive.measure(segmenters)
        if outcome.pictures and jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            pictures.mask_grid(self._folder / f'step_{int(state.step):06d}.png', outcome.pictures)
        return {f'eval/{name}': value for name, value in outcome.values() if math.isfinite(value)}


def open_batches(config: ConfigDict) -> pipeline.Batches:
    """This process's share of the training batches, from the first one on."""
    frame = tuple(config.model.image_size)
    mix = [(config.data.path, 1.0), *config.data.mix]
    if not all(isinstance(one, tuple) and len(one) == 2 for one in mix):
        raise SamjaxError(f"data.mix {config.data.mix} is not like (('/data/more', 10.0),): pairs of path and weight")
    open_set = functools.partial(
        pipeline.open_set,
        seed=config.seed,
        image_size=frame,
        length=config.data.synthetic_train_images,
        cache=config.data.cache,
        max_invalid_fraction=config.data.max_invalid_fraction,
    )
    return pipeline.train_loader(
        [(open_set(path), weight) for path, weight in mix],
        seed=config.seed,
        frame=frame,
        batch=config.train.batch_size,
        max_objects=config.data.max_objects,
        max_area=config.data.max_area_fraction,
        flip=config.data.flip,
        jitter=config.data.scale_jitter,
        workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )


@contextlib.contextmanager
def _signals():
    """Yields a function that says which signal of `EXIT` came, 0 for none; one that comes again acts at once."""
    came = []

    def note(number, frame):
        came.append(number)
        signal.signal(number, before[number])
        print(f'{signal.Signals(number).name}: saves after this step; once more stops at once', flush=True)

    before = {number: signal.signal(number, note) for number in EXIT}
    try:
        yield lambda: max(came, default=0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
