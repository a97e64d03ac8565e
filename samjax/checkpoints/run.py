"""A run on disk: the config in its folder, and the parameters of its newest checkpoint.

    workdir/config.json            every option of the run
    workdir/checkpoints/<step>/    params     parameters and buffers
                                   config     the options again, so that a copied checkpoint explains itself

and what training adds, see `samjax.training.checkpoints`.
"""

from __future__ import annotations

import json
import pathlib
from typing import NoReturn

import jax
import orbax.checkpoint as ocp
from flax import nnx
from ml_collections import ConfigDict

from samjax import config as options
from samjax.checkpoints import orbax_io
from samjax.errors import SamjaxError, reason
from samjax.model import config as model_config
from samjax.model.params import abstract_state
from samjax.storage import atomic, local_path

# Options that may change when a run continues: they touch neither the state nor the order of the data.
CHANGEABLE = (
    'train.num_steps',
    'train.log_every',
    'train.save_every',
    'train.eval_',
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
RESTORE = 'restore it, or choose another --workdir'


def checkpoints_folder(workdir: str | pathlib.Path) -> pathlib.Path:
    """The folder of the checkpoints of a run, which may not exist."""
    return (pathlib.Path(workdir) / 'checkpoints').absolute()


def is_run(path: pathlib.Path) -> bool:
    """Whether `path` is the folder of a run with checkpoints."""
    return checkpoints_folder(path).is_dir()


def write_config(workdir: str, config: ConfigDict) -> None:
    """Writes workdir/config.json."""
    path = pathlib.Path(workdir) / 'config.json'
    atomic.write_text(path, json.dumps(as_json(config), indent=2) + '\n')


def read_config(workdir: str) -> ConfigDict:
    """The options of the run in `workdir`, also of a run saved with the names of options before version 0.2.

    Raises:
        SamjaxError: nothing was trained there, or the file is damaged.
    """
    local_path.refuse_address(workdir)
    path = pathlib.Path(workdir)
    saved = _read_json(path / 'config.json')
    if saved is None:
        _refuse_other(path, 'config.json of a run: name the --workdir of a training run')
    try:
        config = options.from_saved(saved)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise SamjaxError(f'{path / "config.json"} is damaged ({reason(error)}): {RESTORE}') from None
    known = options.flatten(as_json(options.get_config()))
    if unknown := sorted(options.flatten(as_json(config)).keys() - known.keys()):
        raise SamjaxError(
            f'{path / "config.json"} has options that do not exist, such as {unknown[0][:80]!r}: {RESTORE}'
        )
    return config


def _refuse_other(path: pathlib.Path, lacks: str) -> NoReturn:
    """Raises SamjaxError, which says what `path` is instead of the folder of a run."""
    refuse_part(path)
    if not path.exists():
        raise SamjaxError(f'{path} does not exist: name the --workdir of a training run')
    if path.is_file() or any(path.glob('*.safetensors*')) or any(path.glob('*.bin*')):
        raise SamjaxError(f'{path} is not the folder of a run: make one with samjax convert {path} DIR, and name DIR')
    raise SamjaxError(f'{path} holds no {lacks}')


def _read_json(path: pathlib.Path) -> dict | None:
    """The options in a config.json, None if there is none or it is of something else than a run.

    Raises:
        SamjaxError: it is damaged.
    """
    try:
        saved = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise SamjaxError(f'{path} is damaged ({reason(error)}): {RESTORE}') from None
    is_of_run = isinstance(saved, dict) and 'seed' in saved and isinstance(saved.get('model'), dict)
    return saved if is_of_run else None


def refuse_part(path: pathlib.Path) -> None:
    """Raises SamjaxError if `path` is the folder of the checkpoints of a run, or of one of them."""
    for folder in (path.absolute(), path.absolute().parent):
        if folder.name == 'checkpoints' and _read_json(folder.parent / 'config.json') is not None:
            raise SamjaxError(f'{path} is a part of the run {folder.parent}: name that')


def refuse_workdir(workdir: str) -> None:
    """Raises SamjaxError if no run can be kept in `workdir`: it is a file, or the folder of something else."""
    local_path.refuse_address(workdir)
    path = pathlib.Path(workdir)
    if path.exists() and not path.is_dir():
        raise SamjaxError(
            f'{path} is a file: name a folder for the run, and a checkpoint to start from by --config.train.init_from'
        )
    refuse_part(path)
    if (path / 'config.json').exists():
        read_config(workdir)


def refuse_other_config(workdir: str, config: ConfigDict) -> None:
    """Raises SamjaxError if workdir/config.json differs from `config` in options that are not `CHANGEABLE`."""
    old, new = (options.flatten(as_json(c)) for c in (read_config(workdir), config))
    differing = [
        f'{key} is {orbax_io.value_of(old, key)} there and {orbax_io.value_of(new, key)} here'
        for key in sorted(old.keys() | new.keys())
        if orbax_io.value_of(old, key) != orbax_io.value_of(new, key) and not key.startswith(CHANGEABLE)
    ]
    if differing:
        raise SamjaxError(
            f'{workdir} belongs to a run with another config ({"; ".join(differing)}): '
            f'choose another --workdir, or give the same options'
        )


def save_params(workdir: str, config: ConfigDict, params: nnx.State, buffers: nnx.State) -> None:
    """Makes `workdir` a run whose only checkpoint, at step 0, has these parameters and no optimizer state.

    Raises:
        SamjaxError, OSError: the files cannot be written.
    """
    folder = checkpoints_folder(workdir)
    folder.mkdir(parents=True)
    # Orbax would end in many threads that still write; its compression saves less than a tenth.
    atomic.refuse_full_disk(folder, sum(leaf.nbytes for leaf in jax.tree.leaves((params, buffers))) * 9 // 10)
    write_config(workdir, config)
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(jax.device_put({'params': params, 'buffers': buffers})),
        config=ocp.args.JsonSave(as_json(config)),
    )
    manager_options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with (
        orbax_io.one_error(f'{workdir} cannot be written', '{} or choose another folder'),
        orbax_io.open_manager(folder, manager_options, concurrent_gb=1) as manager,
    ):
        manager.save(0, args=items, force=True)


def restore_params(
    workdir: str, config: ConfigDict, shapes=None, remedy: str = orbax_io.OTHER_MODEL
) -> tuple[nnx.State, nnx.State, int]:
    """params, buffers and step of the newest checkpoint; the optimizer state is not read.

    shapes: (params, buffers) with the shardings that the arrays get; by default they are on the first device.
    remedy: what to do if `config.model` has other shapes.

    Raises:
        SamjaxError: there is no checkpoint, it cannot be read, or `config.model` has other shapes.
    """
    folder = checkpoints_folder(workdir)
    if not folder.is_dir():
        _refuse_other(pathlib.Path(workdir), 'checkpoint: name the --workdir of a run that has saved one')
    with orbax_io.open_manager(folder, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise SamjaxError(f'{workdir} holds no complete checkpoint: train there until the first one is saved')
        if shapes is None:
            first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            model, _, _ = model_config.from_options(**config.model)
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=first), abstract_state(model)[1:]
            )
        params = {'params': shapes[0], 'buffers': shapes[1]}
        items = ocp.args.Composite(params=orbax_io.like(params))
        restored = orbax_io.restore_newest(manager, folder, config.model, params, items, remedy)
        return restored.params['params'], restored.params['buffers'], step


def as_json(config: ConfigDict) -> dict:
    """`config` as JSON would give it back."""
    return json.loads(config.to_json())
