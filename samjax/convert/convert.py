"""Conversion of checkpoints: from a PyTorch file or folder, or a run of samjax, to any of these."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from flax import nnx

from samjax.checkpoints import run
from samjax.config import get_config
from samjax.convert import files, weights
from samjax.errors import SamjaxError
from samjax.model import config as model_config
from samjax.model.config import SamConfig, size_name
from samjax.model.params import init_params
from samjax.storage import atomic, local_path

FORMS = ('samjax', 'meta', 'huggingface')


def convert(
    source: str,
    target: str,
    form: str | None,
    image_size: tuple[int, int] | None,
    force: bool,
    key: str | None = None,
    ignore_extra: Sequence[str] = (),
) -> str:
    """Reads `source`, writes `target` and returns a sentence about it.

    source: .pth, .pt, .bin or .safetensors of SAM or MAE; folder of Hugging Face; folder of a run of samjax.
    target: a file ending in .pth, .pt, .bin, .ckpt or .safetensors gets Meta's layout.  A folder is a run that
        `samjax train` and `samjax eval` start from if `source` is PyTorch's, and Hugging Face's if it is a run.
    form: one of `FORMS`, to choose otherwise.
    image_size: (height, width) in px for which the position tables are resized.
    force: accept weights that are not finite.
    key: which model, if the source holds several, see `weights.find`.
    ignore_extra: patterns of names of arrays to leave out, see `weights.from_torch`.

    Raises:
        SamjaxError: the source cannot be read or is no SAM, or the target exists or cannot be written.
    """
    for path in (source, target):
        local_path.refuse_address(path)
    source, target = pathlib.Path(source), pathlib.Path(target)
    atomic.refuse_existing(target)  # before anything large is read
    if form is None:
        is_file = target.suffix.lower() in (*files.PTH_SUFFIXES, '.safetensors')
        form = 'meta' if is_file else 'huggingface' if run.is_run(source) else 'samjax'
    if form not in FORMS:
        raise SamjaxError(f'the form {form!r} is unknown: choose one of {", ".join(FORMS)}')

    arrays, config, origin = read(source, force, key, ignore_extra)
    description = f'{source} ({origin})'
    if image_size is not None and tuple(image_size) != config.image_size:
        new = dataclasses.replace(config, image_size=tuple(image_size))
        arrays = weights.resized(arrays, config, new)
        description += f', position tables resized from {_px(config)} to {_px(new)}'
        config = new

    if form == 'samjax':
        write_run(target, arrays, config)
    elif form == 'huggingface':
        files.write_hugging_face(target, weights.to_torch(weights.HUGGING_FACE, arrays, config), config)
    else:
        write = files.write_safetensors if target.suffix.lower() == '.safetensors' else files.write_pth
        write(target, weights.to_torch(weights.META, arrays, config))
    count = sum(value.size for value in arrays.values())
    return f'{description} -> {target} ({form}): {size_name(config)}, {_px(config)}, {count:,} numbers'


def _px(config: SamConfig) -> str:
    return '{} x {} px'.format(*config.image_size)


def read(
    path: pathlib.Path, force: bool, key: str | None = None, ignore_extra: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """Our path -> array, the architecture, and in words what `path` was and what of it was left alone."""
    if not run.is_run(path):
        run.refuse_part(path)
        return read_torch(path, force, key, ignore_extra)
    if key is not None or ignore_extra:
        raise SamjaxError(f'{path} is a run of samjax: leave out --key and --ignore-extra, which are for others')
    return read_run(path)


def read_states(path: str | os.PathLike) -> tuple[SamConfig, nnx.State, nnx.State]:
    """The architecture, parameters and buffers of whatever `read` reads, in the memory of the host.

    Raises:
        SamjaxError: there is nothing at `path`, it cannot be read, or it is no SAM.
    """
    local_path.refuse_address(path)
    arrays, config, _ = read(pathlib.Path(path), force=False)
    return config, *weights.to_states(arrays, config)


def read_torch(
    path: pathlib.Path, force: bool, key: str | None = None, ignore_extra: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """The same of a file of PyTorch or safetensors, or a folder of Hugging Face."""
    model = weights.find(files.read(path), path, key)
    config = weights.infer_config(model.layout, model.arrays, path)
    ours, ignored = weights.from_torch(model.layout, model.arrays, config, path, force, ignore_extra)
    origin = f'{model.layout.name} layout'
    if model.layout is weights.MAE:
        ours = weights.flat(*init_params(config, 0)) | ours
        origin = "MAE's encoder, everything else initialized at random"
    if left := sorted(model.beside) + ignored:
        origin += f'; left out {len(left)} of its arrays: {weights.shortened(left)}'
    return ours, config, origin


def read_run(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """The same of the newest checkpoint of a run of samjax."""
    options = run.read_config(str(workdir))
    config, _, _ = model_config.from_options(**options.model)
    params, buffers, step = run.restore_params(str(workdir), options)
    return weights.flat(params, buffers), config, f'step {step}'


def write_run(target: pathlib.Path, arrays: dict[str, np.ndarray], config: SamConfig) -> None:
    """A folder with one checkpoint, at step 0, and the default options of a model of this size."""
    options = get_config()
    options.model.size = size_name(config)
    options.model.image_size = config.image_size
    with atomic.new_path(target) as unfinished:
        run.save_params(str(unfinished), options, *weights.to_states(arrays, config))
