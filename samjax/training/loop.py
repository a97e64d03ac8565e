"""The training loop: restore or initialize, then evaluate -> save -> next batch -> step -> log until done."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from samjax.checkpoints import run
from samjax.convert import convert
from samjax.distributed import hardware, sharding
from samjax.errors import SamjaxError, check_option, is_whole
from samjax.model import flops
from samjax.model.config import size_name
from samjax.training import metric_logger
from samjax.training.batches import EmptySteps, check_input, open_batches
from samjax.training.checkpoints import Checkpoints
from samjax.training.compiled_step import CompiledTrainStep, build
from samjax.training.metric_logger import MetricLogger
from samjax.training.step import TrainState

# Exit codes of a run that was asked to stop, by signal.
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 75}  # Ctrl-C; preemption: "try again" of sysexits.h

# (config, workdir, mesh) -> scores of a state by name
OpenEvaluation = Callable[[ConfigDict, str, Mesh], Callable[[TrainState], dict[str, float]]]


class Stopped(Exception):
    """The run was asked to stop and has saved; `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The section `train` of samjax.config, which explains the fields.

    Raises:
        SamjaxError: a value is not possible.
    """

    init_from: str
    num_steps: int
    batch_size: int
    grad_accum_steps: int
    log_every: int
    save_every: int
    max_to_keep: int
    max_skipped: int
    profile_steps: tuple[int, int]
    eval_every: int
    eval_max_images: int
    eval_max_objects: int

    def __post_init__(self):
        for name, least in (
            ('num_steps', 1),
            ('batch_size', 1),
            ('grad_accum_steps', 1),
            ('log_every', 1),
            ('save_every', 1),
            ('max_to_keep', 1),
            ('max_skipped', 0),
            ('eval_every', 1),
            ('eval_max_images', 0),
            ('eval_max_objects', 0),
        ):
            check_option(f'train.{name}', getattr(self, name), lambda n, least=least: n >= least, f'{least} or more')
        check_option(
            'train.profile_steps',
            self.profile_steps,
            lambda pair: len(pair) == 2 and all(map(is_whole, pair)) and (0 < pair[0] <= pair[1] or pair == (0, 0)),
            '(first, last) step; (0, 0) is none',
        )


def train(config: ConfigDict, workdir: str, open_evaluation: OpenEvaluation) -> TrainState:
    """Trains until update `config.train.num_steps` and returns the last state; the same call continues a stopped run.

    open_evaluation: makes the evaluation during training, such as
    `samjax.evaluation.during_training.TrainingEvaluation`.
    Files: see `samjax.training.checkpoints` and `samjax.training.metric_logger`.

    Raises:
        SamjaxError: an option or file is wrong, too many steps had no finite loss, no mask was sampled from the first
            images, or the disk is full.
        Stopped: Ctrl-C was pressed or SIGTERM sent, to any process of the job; the state is saved.
    """
    begun = time.perf_counter()
    run.refuse_workdir(workdir)
    check_options(config)
    options = LoopConfig(**config.train)
    compiled = build(config)
    mesh, num_steps = compiled.mesh, options.num_steps
    evaluate = open_evaluation(config, workdir, mesh)
    batches = open_batches(config)
    checkpoints = Checkpoints(workdir, options.max_to_keep, config)

    # Restore or initialize.
    if checkpoints.latest is None:
        state = initial_state(config, compiled)
    else:
        state = checkpoints.restore(compiled.state, batches)
    start = int(state.step)
    every, batch_size = options.log_every, options.batch_size
    mfu = utilization(config, compiled)
    log = MetricLogger(workdir, start, num_steps, every, batch_size, compiled.rate, begun, mfu)
    log.print(metric_logger.parameter_table(state.params))
    log.print(f'{metric_logger.device_line(mesh)}; {batch_size} images per step')
    verb = 'continues' if start else 'starts'
    log.print(f'{verb} at step {start} of {num_steps} in {workdir}; the first step compiles')
    if 0 < config.optimizer.cooldown[1] < num_steps:
        log.print(
            f'warning: the learning rate is 0 from step {config.optimizer.cooldown[1]} on: set the last step of '
            f'--config.optimizer.cooldown to {num_steps}'
        )

    # Contract.  `done` updates made this state.  Before the next batch is taken, the scores of this state are logged
    # and its checkpoint is being written, if they are due: a restored run finds what it would have made.  Metrics of a
    # step, and whether a process was asked to stop, are read after the next step is dispatched, so that all processes
    # know it before the same step; then time may be short, and nothing is evaluated.  Between batch and dispatch there
    # are only explicit transfers between host and device.
    intervals = options.eval_every, options.save_every
    pending = PendingStep(log, options.max_skipped, checkpoints, EmptySteps(config, start))
    profiler = ProfilerTrace(options.profile_steps, workdir)
    with (
        contextlib.closing(log),
        contextlib.closing(batches),
        contextlib.closing(checkpoints),
        _stop_signals() as stop_signal,
    ):
        for done in range(start, num_steps):
            due_evaluation, due_save = (done > start and done % every == 0 for every in intervals)
            if due_evaluation or due_save:
                pending.settle()
            if pending.stop_signal:
                checkpoints.save(state, batches)
                checkpoints.wait()
                code = EXIT[pending.stop_signal]
                raise Stopped(f'stopped and saved at step {done}; the same command continues', code)
            if due_evaluation:
                with log.time_of('evaluation'):
                    log.values(done, evaluate(state))
            if due_save:
                with log.time_of('saving'):
                    checkpoints.save(state, batches)
            profiler.before(done + 1, pending)
            with jax.transfer_guard('disallow'):
                with log.waiting(pending.is_computed):
                    batch = next(batches)
                batch = sharding.to_global(batch, mesh)
                state, metrics = compiled.step(state, batch)
                stop_anywhere = sharding.global_max(stop_signal(), mesh)
            pending.settle()
            pending.add(done + 1, metrics, stop_anywhere)
        pending.settle()
        profiler.close()
        if start < num_steps:
            with log.time_of('evaluation'):
                log.values(num_steps, evaluate(state))
            with log.time_of('saving'):
                checkpoints.save(state, batches)
                checkpoints.wait()
        log.finish()
    return state


def initial_state(config: ConfigDict, compiled: CompiledTrainStep) -> TrainState:
    """A new state, with the parameters of the checkpoint at `config.train.init_from`, if it names one.

    Raises:
        SamjaxError: there is no checkpoint that `samjax convert` reads, or one of another model or image size.
    """
    if not config.train.init_from:
        return compiled.init()
    params, buffers = _read_params(config, compiled)
    return dataclasses.replace(compiled.init(), params=params, buffers=buffers)


def _read_params(config: ConfigDict, compiled: CompiledTrainStep) -> tuple[nnx.State, nnx.State]:
    """params and buffers of the checkpoint at `config.train.init_from`, with the shardings of training."""
    path, (height, width) = config.train.init_from, config.model.image_size
    shapes = compiled.state.params, compiled.state.buffers
    remedy = (
        f'set --config.model.size as there, or if only the image size differs, run samjax convert {path} DIR '
        f'--image-size {height},{width} and set --config.train.init_from=DIR'
    )
    if run.is_run(pathlib.Path(path)):
        return run.restore_params(path, config, shapes, remedy)[:2]
    found, *arrays = convert.read_states(path)
    if found != compiled.model:
        holds, wants = (f'a {size_name(model)!r} for {model.image_size} px' for model in (found, compiled.model))
        raise SamjaxError(f'{path} holds {holds} and the config asks for {wants}: {remedy}')
    return jax.tree.map(_on_devices, tuple(arrays), shapes)


def _on_devices(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)


def utilization(config: ConfigDict, compiled: CompiledTrainStep) -> Callable[[float], float]:
    """Images per second -> fraction of the peak of all devices (MFU), NaN if the peak is unknown."""
    peak = hardware.peak(compiled.mesh.devices.flat[0].device_kind) or math.nan
    per_image = flops.train_flops(compiled.model, config.data.max_objects, config.prompts.rounds)
    return lambda images_per_second: images_per_second * per_image / (compiled.mesh.size * peak)


class PendingStep:
    """The results of the last dispatched step: its metrics, and whether a process was asked to stop."""

    def __init__(self, log: MetricLogger, max_skipped: int, checkpoints: Checkpoints, empty_steps: EmptySteps):
        self._log, self._max_skipped, self._checkpoints = log, max_skipped, checkpoints
        self._empty_steps = empty_steps
        self._step, self._metrics, self._stop_anywhere = 0, None, None
        self.stop_signal = 0  # the signal that a process of the job got, as of the last settled step

    def add(self, step: int, metrics: dict[str, jax.Array], stop_anywhere: jax.Array) -> None:
        """Takes the results of update `step`, which may still be being computed."""
        self._step, self._metrics, self._stop_anywhere = step, metrics, stop_anywhere

    def is_computed(self) -> bool:
        """Whether the devices have finished the step, so that they are idle."""
        return self._metrics is None or self._metrics['loss'].is_ready()

    def settle(self) -> None:
        """Waits for the results and logs them.

        Raises:
            SamjaxError: loss or gradient were not finite in too many consecutive steps, or see `EmptySteps`.
        """
        if self._metrics is None:
            return
        metrics = {name: float(value) for name, value in jax.device_get(self._metrics).items()}
        self.stop_signal = int(jax.device_get(self._stop_anywhere))
        self._metrics = None
        if metrics['skipped']:
            name = next(name for name in ('loss', 'grad_norm') if not math.isfinite(metrics[name]))
            event = f'{name} is {metrics[name]} at step {self._step}'
            if metrics['skipped'] > self._max_skipped:
                last = self._checkpoints.latest
                kept = 'no checkpoint exists yet' if last is None else f'the last good checkpoint is step {last}'
                raise SamjaxError(
                    f'{event}, training stops ({kept}): lower --config.optimizer.lr or set --config.optimizer.clip_norm'
                )
            self._log.print(f'{event}: the step is skipped')
        self._empty_steps.check(self._step, metrics['objects'])
        self._log.step(self._step, metrics)


class ProfilerTrace:
    """A profiler trace of steps `first` to `last` in workdir/profile; view it with `xprof --logdir`."""

    def __init__(self, steps: tuple[int, int], workdir: str):
        self._first, self._last = steps
        self._folder = str(pathlib.Path(workdir) / 'profile')
        self._running = False

    def before(self, step: int, pending: PendingStep) -> None:
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


def check_options(config: ConfigDict) -> None:
    """Raises SamjaxError if an option of the loop or of its input is not possible, before anything is read."""
    LoopConfig(**config.train)
    check_input(config)


@contextlib.contextmanager
def _stop_signals():
    """Yields a function that gives the signal of `EXIT` that came, 0 for none; a second signal acts at once."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(number, before[number])
        print(f'{signal.Signals(number).name}: saves after this step; a second signal stops at once', flush=True)

    before = {number: signal.signal(number, note) for number in EXIT}
    try:
        yield lambda: max(received, default=0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
