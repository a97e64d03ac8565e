"""The checkpoints of a training run: saved in the background, restored on any mesh.

    workdir/config.json            every option of the run
    workdir/checkpoints/<step>/    params     parameters and buffers
                                   opt_state  optimizer state, step and skipped steps
                                   data       position in the data, the same for all processes
                                   config     the options again, so that a copied checkpoint explains itself

A checkpoint appears under its number only when it is complete; whatever an interrupted save leaves behind is ignored
and removed at the next start.  A checkpoint fits any mesh and any number of processes.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sys

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from samjax.checkpoints import orbax_io, run
from samjax.checkpoints.orbax_io import UnreadableCheckpoint
from samjax.data.pipeline import Batches
from samjax.errors import SamjaxError
from samjax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run.  They are written in the background: training waits for the copy off the devices."""

    def __init__(self, workdir: str, max_to_keep: int, config: ConfigDict):
        """Claims `workdir` for `config`; the newest `max_to_keep` checkpoints stay.

        Raises:
            SamjaxError: `workdir` holds checkpoints of a run with other options than `config`.
        """
        self._config = config
        self._folder = run.checkpoints_folder(workdir)
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
        self._manager = orbax_io.open_manager(self._folder, options)
        if self.latest is not None and (pathlib.Path(workdir) / 'config.json').exists():
            run.refuse_other_config(workdir, config)
        if jax.process_index() == 0:
            run.write_config(workdir, config)
        self._written = self.latest

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, None if there is none; while one is written, `wait` first."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Batches) -> None:
        """Begins to write `state` and the position of `data` under the state's step, unless that checkpoint exists.

        Raises:
            SamjaxError: this one, or the one before, cannot be written; earlier checkpoints stay as they are.
        """
        step = int(jax.device_get(state.step))
        if step == self.latest:
            return
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave({'params': state.params, 'buffers': state.buffers}),
            opt_state=ocp.args.PyTreeSave({'opt_state': state.opt_state, 'step': state.step, 'skipped': state.skipped}),
            data=ocp.args.JsonSave(data.get_state()),
            config=ocp.args.JsonSave(run.as_json(self._config)),
        )
        self.wait()
        with self._write_error(step):
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            SamjaxError: it cannot be written; earlier checkpoints stay as they are.
        """
        with self._write_error(self.latest):
            self._manager.wait_until_finished()
        self._written = self.latest

    def _write_error(self, step: int | None):
        resumes = 'from the beginning' if self._written is None else f'from step {self._written}'
        return orbax_io.one_error(
            f'checkpoint {self._folder / str(step)} cannot be written',
            f'{{}} and run the same command, it continues {resumes}',
        )

    def restore(self, abstract: TrainState, data: Batches) -> TrainState:
        """The newest readable state, on the shardings of `abstract`; moves `data` to the position of that state.

        Checkpoints that cannot be read are moved to workdir/unreadable, with a warning.

        Raises:
            SamjaxError: no checkpoint can be read, or the newest holds a model of other shapes.
        """
        params = {'params': abstract.params, 'buffers': abstract.buffers}
        others = {'opt_state': abstract.opt_state, 'step': abstract.step, 'skipped': abstract.skipped}
        items = ocp.args.Composite(
            params=orbax_io.like(params), opt_state=orbax_io.like(others), data=ocp.args.JsonRestore()
        )
        while True:
            try:
                restored = orbax_io.restore_newest(self._manager, self._folder, self._config.model, params, items)
            except UnreadableCheckpoint as error:
                self._set_aside(error)
            else:
                data.set_state(restored.data)
                return TrainState(**restored.params, **restored.opt_state)

    def _set_aside(self, error: UnreadableCheckpoint) -> None:
        """Moves the newest checkpoint away, or raises `error` if there is no other."""
        step, earlier = self._manager.latest_step(), sorted(self._manager.all_steps())[:-1]
        if not earlier:
            raise error
        target = self._folder.parent / 'unreadable' / str(step)
        if jax.process_index() == 0:
            warning = f'warning: {error}; moved to {target}, continues from step {earlier[-1]}'
            print(warning, file=sys.stderr, flush=True)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(target)
        multihost_utils.sync_global_devices(f'set {step} aside')
        self._manager.reload()

    def close(self) -> None:
        """Ends pending writes, whether they succeed or not."""
        with contextlib.suppress(SamjaxError), self._write_error(None):
            self._manager.close()
