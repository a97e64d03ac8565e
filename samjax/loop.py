"""The training loop: restore or initialise, then evaluate -> save -> next batch -> step -> log until done."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from samjax import checkpoint, optimizer, pictures, report, sharding
from samjax import log as logs
from samjax.checkpoint import Checkpoints, abstract_on
from samjax.data import pipeline
from samjax.errors import SamjaxError
from samjax.losses import LossOptions
from samjax.model.sam import abstract, sam_config
from samjax.prompts import Simulation
from samjax.step import TrainState, init_state, train_step


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Trains until update `config.train.steps` and returns the last state; the same call continues a stopped run.

    Files: see `samjax.checkpoint` and `samjax.log`; pictures of each evaluation in workdir/pictures.

    Raises:
        SamjaxError: a setting or file is wrong, the loss is not finite, or the disk is full.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    model = sam_config(**config.model)
    mesh = sharding.make_mesh()
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    sharding.check_batch(config.train.batch, mesh)
    options = optimizer.Options(**config.optimizer)
    rate = optimizer.schedule(options)
    graphdef, shapes, _ = abstract(model)
    tx = optimizer.make_optimizer(options, shapes, model.depth)
    init = functools.partial(init_state, model, tx, config.seed)
    update = functools.partial(
        train_step,
        graphdef=graphdef,
        tx=tx,
        simulation=Simulation(**config.prompts),
        loss=LossOptions(**config.loss),
        seed=config.seed,
    )
    batches = open_batches(config)
    evaluation = Evaluation(config, workdir)
    checkpoints = Checkpoints(workdir, config.train.keep, config)

    # Restore or initialise.
    if checkpoints.latest is None:
        state = initial_state(config, init, replicated)
    else:
        state = checkpoints.restore(abstract_on(jax.eval_shape(init), replicated), batches)
    step = jax.jit(
        update,
        in_shardings=(replicated, split),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )
    start, steps = int(state.step), config.train.steps
    log = logs.Log(workdir, start, steps, config.train.log_every, config.train.batch, rate)
    log.say(logs.parameter_table(state.params))
    log.say(f'{logs.device_line()}; {config.train.batch} images per step')
    log.say(f'{"continues" if start else "starts"} at step {start} of {steps} in {workdir}; the first step compiles')

    # Contract.  `done` updates lie behind the state.  Before the next batch is taken, the scores of this state are in
    # the log and the state is on disk, if they are due; so what a restored run finds is what it would have made.
    # Metrics of a step are read after the next one is dispatched, but before anything is saved: a state is saved only
    # if the loss and gradient that made it are finite.  Between batch and dispatch nothing moves between host and
    # device unless it says so.
    pending = Pending(log, checkpoints)
    with contextlib.closing(log), contextlib.closing(batches), _interrupts() as interrupted:
        for done in range(start, steps):
            stop = interrupted()
            due_evaluation = done > start and done % config.train.eval_every == 0
            due_save = stop or done > start and done % config.train.save_every == 0
            if due_evaluation or due_save:
                pending.settle()
                with log.untimed():
                    if due_evaluation:
                        log.values(done, evaluation(state))
                    if due_save:
                        checkpoints.save(state, batches)
            if stop:
                raise KeyboardInterrupt(f'stopped and saved at step {done}; the same command continues')
            with jax.transfer_guard('disallow'):
                batch = sharding.to_global(next(batches), mesh)
                state, metrics = step(state, batch)
            pending.settle()
            pending.add(done + 1, metrics)
        pending.settle()
        if start < steps:
            log.values(steps, evaluation(state))
            checkpoints.save(state, batches)
        log.finish()
    return state


def initial_state(config: ConfigDict, init: Callable[[], TrainState], placement: jax.sharding.Sharding) -> TrainState:
    """What `init` draws, or its optimiser with the parameters of the checkpoint that `config.train.init` names.

    Raises:
        SamjaxError: there is no checkpoint, or one of a model of another size.
    """
    state = jax.jit(init, out_shardings=placement)()
    if not config.train.init:
        return state
    params, buffers, _ = checkpoint.restore_params(config.train.init, config)
    return dataclasses.replace(state, params=params, buffers=buffers)


class Pending:
    """The metrics of the last dispatched step, not yet read from the device."""

    def __init__(self, log: logs.Log, checkpoints: Checkpoints):
        self._log, self._checkpoints = log, checkpoints
        self._step, self._metrics = 0, None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of update `step`, which may still be computed."""
        self._step, self._metrics = step, metrics

    def settle(self) -> None:
        """Waits for the metrics and logs them.

        Raises:
            SamjaxError: loss or gradient is not finite.
        """
        if self._metrics is None:
            return
        metrics = {name: float(value) for name, value in jax.device_get(self._metrics).items()}
        self._metrics = None
        for name in ('loss', 'grad_norm'):
            if not math.isfinite(metrics[name]):
                last = self._checkpoints.latest
                kept = 'no checkpoint exists yet' if last is None else f'the last good checkpoint is step {last}'
                raise SamjaxError(
                    f'{name} is {metrics[name]} at step {self._step}, training stops ({kept}): '
                    f'lower --config.optimizer.lr or set --config.optimizer.clip'
                )
        self._log.step(self._step, metrics)


class Evaluation:
    """Scores of a state on the evaluation images; draws workdir/pictures/step_<step>.png."""

    def __init__(self, config: ConfigDict, workdir: str):
        self._config = config
        self._interactive = report.open_interactive(config, config.eval.max_images, config.eval.max_objects)
        self._folder = pathlib.Path(workdir) / 'pictures'

    def __call__(self, state: TrainState) -> dict[str, float]:
        segmenter = report.sam_segmenter('sam', self._config, state.params, state.buffers)
        outcome = self._interactive.measure(segmenter)
        if outcome.pictures and jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            pictures.mask_grid(self._folder / f'step_{int(state.step):06d}.png', outcome.pictures)
        return {f'eval/{name}': value for name, value in outcome.values() if math.isfinite(value)}


def open_batches(config: ConfigDict) -> pipeline.Batches:
    """This process's share of the training batches, from the first one on."""
    frame = tuple(config.model.image_size)
    source = pipeline.open_source(
        config.data.path,
        seed=config.seed,
        image_size=frame,
        length=config.data.train_images,
        cache=config.data.cache,
        max_bad_share=config.data.max_bad_share,
    )
    return pipeline.train_loader(
        source,
        seed=config.seed,
        frame=frame,
        batch=config.train.batch,
        max_objects=config.data.max_objects,
        max_area=config.data.max_area,
        flip=config.data.flip,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )


@contextlib.contextmanager
def _interrupts():
    """Yields a function that says whether Ctrl-C was pressed; pressed again it stops at once."""
    pressed = []

    def press(number, frame):
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print('Ctrl-C: saves after this step; press again to stop at once', flush=True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
