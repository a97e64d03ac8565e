"""A training run on disk: numbered checkpoints and the config they belong to.

    workdir/config.json            every option of the run
    workdir/checkpoints/<step>/    params     parameters and buffers
                                   opt_state  optimiser and step
                                   data       position in the data, the same for all processes
                                   config     the options again, so that a copied checkpoint explains itself

A checkpoint appears under its number only when it is complete; whatever an interrupted save leaves behind is ignored
and removed at the next start.  What is saved fits any mesh and any number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import pathlib
import shutil
import sys

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from samjax import config as config_module
from samjax.data.pipeline import Batches
from samjax.errors import SamjaxError
from samjax.model.params import abstract_state
from samjax.model.sam import sam_config
from samjax.training.step import TrainState

# An array that several devices hold is written in slices, one by each, if these are at least so large.  Every shape
# that is sliced costs a compilation, half a minute for all the small ones of a model.
SLICE_BYTES = 2**20
# Options that may change when a run continues: they touch neither the state nor the order of the data.
FREE = (
    'train.num_steps',
    'train.log_every',
    'train.save_every',
    'train.eval_every',
    'train.max_to_keep',
    'train.max_skipped',
    'train.profile_steps',
    'train.grad_accum_steps',
    'mesh.',
    'model.remat',
    'data.eval_path',
    'data.synthetic_eval_images',
    'data.cache',
    'data.num_workers',
    'data.prefetch',
    'eval.',
)


class Checkpoints:
    """The checkpoints of one run.  They are written in the background: training waits for the copy off the devices."""

    def __init__(self, workdir: str, keep: int, config: ConfigDict):
        """Claims `workdir` for `config`; the newest `keep` checkpoints stay.

        Raises:
            SamjaxError: `workdir` holds checkpoints of a run with other options than `config`.
        """
        self._config = config
        self._folder = _folder(workdir)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = _manager(self._folder, options)
        path = pathlib.Path(workdir) / 'config.json'
        if self.latest is not None and path.exists():
            refuse_another(workdir, config)
        if jax.process_index() == 0:
            write(path, json.dumps(_plain(config), indent=2) + '\n')
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
            config=ocp.args.JsonSave(_plain(self._config)),
        )
        self.wait()
        with self._tells_of(step):
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            SamjaxError: it cannot be written; earlier checkpoints stay as they are.
        """
        with self._tells_of(self.latest):
            self._manager.wait_until_finished()
        self._written = self.latest

    def _tells_of(self, step: int | None):
        back = 'from the beginning' if self._written is None else f'from step {self._written}'
        return _one_error(
            f'checkpoint {self._folder / str(step)} cannot be written',
            f'make room and run the same command, it continues {back}',
        )

    def restore(self, abstract: TrainState, data: Batches) -> TrainState:
        """The newest state that can be read, on the shardings of `abstract`; moves `data` to where it was.

        Checkpoints that cannot be read are moved to workdir/unreadable, with a warning.

        Raises:
            SamjaxError: no checkpoint can be read, or the newest holds a model of other shapes.
        """
        params = {'params': abstract.params, 'buffers': abstract.buffers}
        rest = {'opt_state': abstract.opt_state, 'step': abstract.step, 'skipped': abstract.skipped}
        items = ocp.args.Composite(params=_onto(params), opt_state=_onto(rest), data=ocp.args.JsonRestore())
        while True:
            try:
                restored = _restore(self._manager, self._folder, self._config, params, items)
            except Unreadable as error:
                self._set_aside(error)
            else:
                data.set_state(restored.data)
                return TrainState(**restored.params, **restored.opt_state)

    def _set_aside(self, error: Unreadable) -> None:
        """Moves the newest checkpoint away, or raises `error` if there is no other."""
        step, before = self._manager.latest_step(), sorted(self._manager.all_steps())[:-1]
        if not before:
            raise error
        place = self._folder.parent / 'unreadable' / str(step)
        if jax.process_index() == 0:
            print(f'warning: {error}; moved to {place}, continues from step {before[-1]}', file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(place)
        multihost_utils.sync_global_devices(f'set {step} aside')
        self._manager.reload()

    def close(self) -> None:
        """Ends the writing of what is under way, whatever comes of it."""
        with contextlib.suppress(SamjaxError), self._tells_of(None):
            self._manager.close()


class Unreadable(SamjaxError):
    """A checkpoint is damaged."""


def save_params(workdir: str, config: ConfigDict, params: nnx.State, buffers: nnx.State) -> None:
    """Makes `workdir` a run whose only checkpoint, at step 0, has these parameters and no optimiser.

    Raises:
        SamjaxError: the files cannot be written.
    """
    folder = _folder(workdir)
    folder.mkdir(parents=True)
    write(pathlib.Path(workdir) / 'config.json', json.dumps(_plain(config), indent=2) + '\n')
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(jax.device_put({'params': params, 'buffers': buffers})),
        config=ocp.args.JsonSave(_plain(config)),
    )
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    once = _one_error(f'{workdir} cannot be written', 'make room or choose another place')
    with once, _manager(folder, options, in_flight=1) as manager:
        manager.save(0, args=items, force=True)


def restore_params(workdir: str, config: ConfigDict, wanted=None) -> tuple[nnx.State, nnx.State, int]:
    """params, buffers and step of the newest checkpoint; the optimiser is not read.

    `wanted` (params, buffers), shapes with shardings, says where to put them; otherwise it is the first device.

    Raises:
        SamjaxError: there is no checkpoint, it cannot be read, or `config.model` has other shapes.
    """
    folder = _folder(workdir)
    if not folder.is_dir():
        raise SamjaxError(f'{workdir} holds no checkpoint: name the --workdir of a run that has saved one')
    options = ocp.CheckpointManagerOptions(read_only=True)
    with _manager(folder, options) as manager:
        if manager.latest_step() is None:
            raise SamjaxError(f'{workdir} holds no complete checkpoint: train there until the first one is saved')
        if wanted is None:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            wanted = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                abstract_state(sam_config(**config.model))[1:],
            )
        params = {'params': wanted[0], 'buffers': wanted[1]}
        items = ocp.args.Composite(params=_onto(params))
        restored = _restore(manager, folder, config, params, items)
        return restored.params['params'], restored.params['buffers'], manager.latest_step()


def refuse_another(workdir: str, config: ConfigDict) -> None:
    """Raises SamjaxError if workdir/config.json differs from `config` in options that are not in `FREE`."""
    old, new = config_module.flatten(_plain(read_config(workdir))), config_module.flatten(_plain(config))
    differing = [
        f'{key} is {_shown(old, key)} there and {_shown(new, key)} here'
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key) and not key.startswith(FREE)
    ]
    if differing:
        raise SamjaxError(
            f'{workdir} belongs to a run with another config ({"; ".join(differing)}): '
            f'choose another --workdir, or give the same options'
        )


def read_config(workdir: str) -> ConfigDict:
    """The options of the run in `workdir`.

    Raises:
        SamjaxError: nothing was trained there.
    """
    path = pathlib.Path(workdir) / 'config.json'
    if not path.exists():
        raise SamjaxError(f'{path} does not exist: name the --workdir of a training run')
    return config_module.from_saved(json.loads(path.read_text()))


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    unfinished = path.with_name(f'{path.name}.tmp')
    unfinished.write_text(text)
    unfinished.replace(path)


def _folder(workdir: str) -> pathlib.Path:
    return (pathlib.Path(workdir) / 'checkpoints').absolute()


def _manager(
    folder: pathlib.Path, options: ocp.CheckpointManagerOptions, in_flight: int | None = None
) -> ocp.CheckpointManager:
    """`in_flight`: GB that are written at once, where memory is short."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handlers = {
        'params': ocp.PyTreeCheckpointHandler(type_handler_registry=registry, save_concurrent_gb=in_flight),
        'opt_state': ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        'data': ocp.JsonCheckpointHandler(),
        'config': ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def _onto(tree) -> ocp.args.PyTreeRestore:
    """Arguments that restore arrays with the shapes, dtypes and shardings of `tree`."""
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


def _restore(manager, folder: pathlib.Path, config: ConfigDict, params, items: ocp.args.Composite):
    """Restores `items` of the newest step after comparing its shapes with `params`."""
    path = folder / str(manager.latest_step())
    readable = functools.partial(
        _one_error, f'checkpoint {path} cannot be read', 'remove that folder to begin anew', Unreadable
    )
    with readable():
        stored = _shapes(manager.item_metadata(manager.latest_step())['params'].tree)
    wanted = _shapes(params)
    for name in sorted(stored.keys() | wanted.keys()):
        if _shown(stored, name) != _shown(wanted, name):
            saved = manager.restore(manager.latest_step(), args=ocp.args.Composite(config=ocp.args.JsonRestore()))
            model = saved.config['model']
            raise SamjaxError(
                f'checkpoint {path} holds a {model["size"]!r} for {tuple(model["image_size"])} px and the config asks '
                f'for a {config.model.size!r} for {tuple(config.model.image_size)} px ({name} is '
                f'{_shown(stored, name)} there and {_shown(wanted, name)} here): set --config.model.size and '
                f'--config.model.image_size as they were, or choose another --workdir'
            )
    with readable():
        return manager.restore(manager.latest_step(), args=items)


@contextlib.contextmanager
def _one_error(what: str, mend: str, kind: type[SamjaxError] = SamjaxError):
    """Turns whatever Orbax raises inside into one error of a `kind`.

    Orbax and TensorStore know many kinds of error for one full disk, log a traceback for every array, and arrays that
    are done after they gave up complain until the process ends: all of that is kept from the terminal, after an error
    for good.
    """
    loggers, hook = [logging.getLogger(name) for name in ('absl', 'asyncio')], sys.unraisablehook
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = functools.partial(_unless_late, hook)
    try:
        yield
    except Exception as error:
        reason = ': '.join(str(error).strip().split('\n')[0].split(' [')[0].split(': ')[-2:])
    else:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        return
    gc.collect()
    raise kind(f'{what} ({reason}): {mend}')


def _unless_late(hook, unraisable) -> None:
    """Tells `hook`, but not of an array that TensorStore had done when nobody waited for it any more."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        hook(unraisable)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}


def _plain(config: ConfigDict) -> dict:
    """`config` as JSON would give it back."""
    return json.loads(config.to_json())


def _shown(table: dict, key: str) -> str:
    return repr(table[key]) if key in table else 'absent'
