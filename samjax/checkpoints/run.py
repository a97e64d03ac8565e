"""A run on disk: the config in its folder, and the parameters of its newest checkpoint.

    workdir/config.json            every option of the run
    workdir/checkpoints/<step>/    params     parameters and buffers
                                   config     the options again, so that a copied checkpoint explains itself

and what training adds, see `samjax.training.checkpoints`.
"""

from __future__ import annotations

import json
import pathlib

import jax
import orbax.checkpoint as ocp
from flax import nnx
from ml_collections import ConfigDict

from samjax import config as options
from samjax.checkpoints import orbax_io
from samjax.errors import SamjaxError
from samjax.model import config as model_config
from samjax.model.params import abstract_state
from samjax.storage import atomic

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
    path = pathlib.Path(workdir) / 'config.json'
    if not path.exists():
        raise SamjaxError(f'{path} does not exist: name the --workdir of a training run')
    remedy = 'copy it again, or copy the one of a run with the same options'
    try:
        config = options.from_saved(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SamjaxError(f'{path} cannot be read ({error}): {remedy}') from error
    if unknown := sorted(
        options.flatten(as_json(config)).keys() - options.flatten(as_json(options.get_config())).keys()
    ):
        raise SamjaxError(f'{path} has options that do not exist, such as {unknown[0]!r}: {remedy}')
    return config


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
        SamjaxError: the files cannot be written.
    """
    folder = checkpoints_folder(workdir)
    folder.mkdir(parents=True)
    write_config(workdir, config)
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(jax.device_put({'params': params, 'buffers': buffers})),
        config=ocp.args.JsonSave(as_json(config)),
    )
    manager_options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with (
        orbax_io.one_error(f'{workdir} cannot be written', 'free some space or choose another folder'),
        orbax_io.open_manager(folder, manager_options, concurrent_gb=1) as manager,
    ):
        manager.save(0, args=items, force=True)


def restore_params(workdir: str, config: ConfigDict, shapes=None) -> tuple[nnx.State, nnx.State, int]:
    """params, buffers and step of the newest checkpoint; the optimizer state is not read.

    shapes: (params, buffers) with the shardings that the arrays get; by default they are on the first device.

    Raises:
        SamjaxError: there is no checkpoint, it cannot be read, or `config.model` has other shapes.
    """
    folder = checkpoints_folder(workdir)
    if not folder.is_dir():
        raise SamjaxError(f'{workdir} holds no checkpoint: name the --workdir of a run that has saved one')
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
        restored = orbax_io.restore_newest(manager, folder, config.model, params, items)
        return restored.params['params'], restored.params['buffers'], step


def as_json(config: ConfigDict) -> dict:
    """`config` as JSON would give it back."""
    return json.loads(config.to_json())
