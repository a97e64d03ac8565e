"""Conversion of checkpoints: a torch file or folder, or a run of ours, in; any of these out."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from samjax.convert import files, weights
from samjax.errors import SamjaxError
from samjax.inference.predictor import Predictor
from samjax.model.params import abstract_state, init_params
from samjax.model.sam import SamConfig, sam_config
from samjax.training import checkpoints

FORMS = ('samjax', 'meta', 'huggingface')


def convert(
    source: str, target: str, form: str | None, image_size: tuple[int, int] | None, force: bool, defaults: ConfigDict
) -> str:
    """Reads `source`, writes `target` and returns a sentence about it.

    source: .pth, .pt, .bin or .safetensors of SAM or MAE; folder of Hugging Face; folder of a run of ours.
    target: a file ending in .pth, .pt or .safetensors has Meta's layout.  A folder is a run that train.py and eval.py
        start from if `source` is torch's, and Hugging Face's if it is ours.
    form: one of `FORMS`, to choose otherwise.
    image_size: (height, width) in px the weights are to be for; the position tables are resized.
    force: take weights that are not finite.
    defaults: the config that a run of ours is to have, but for its section `model`.

    Raises:
        SamjaxError: the source cannot be read or is no SAM, or the target exists or cannot be written.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    files.refuse_existing(target)  # before anything large is read
    if form is None:
        is_file = target.suffix in ('.pth', '.pt', '.safetensors')
        form = 'meta' if is_file else 'huggingface' if is_run(source) else 'samjax'
    if form not in FORMS:
        raise SamjaxError(f'the form {form!r} is not known: choose one of {", ".join(FORMS)}')

    arrays, config, origin = read(source, force)
    said = f'{source} ({origin})'
    if image_size is not None and tuple(image_size) != config.image_size:
        new = dataclasses.replace(config, image_size=tuple(image_size))
        arrays = weights.resized(arrays, config, new)
        said += f', position tables resized from {_px(config)} to {_px(new)}'
        config = new

    if form == 'samjax':
        write_run(target, arrays, config, defaults)
    elif form == 'huggingface':
        files.write_hugging_face(target, weights.to_torch(weights.HUGGING_FACE, arrays, config), config)
    else:
        write = files.write_safetensors if target.suffix == '.safetensors' else files.write_pth
        write(target, weights.to_torch(weights.META, arrays, config))
    count = sum(value.size for value in arrays.values())
    return f'{said} -> {target} ({form}): {weights.size_name(config)}, {_px(config)}, {count:,} numbers'


def _px(config: SamConfig) -> str:
    return '{} x {} px'.format(*config.image_size)


def open_predictor(path: str, dtype: str = 'float32') -> Predictor:
    """A predictor with the weights of any checkpoint that `convert` reads; activations are `dtype`.

    Raises:
        SamjaxError: as `convert`.
    """
    arrays, config, _ = read(pathlib.Path(path), force=False)
    params, buffers = jax.device_put(to_states(arrays, config))
    return Predictor(dataclasses.replace(config, dtype=dtype), params, buffers)


def is_run(path: pathlib.Path) -> bool:
    """Whether `path` is the folder of a run of ours."""
    return (path / 'checkpoints').is_dir()


def read(path: pathlib.Path, force: bool) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """Our path -> array, the size of the model, and in words what `path` was."""
    return read_run(path) if is_run(path) else read_torch(path, force)


def read_torch(path: pathlib.Path, force: bool) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """The same of a file of PyTorch or safetensors, or a folder of Hugging Face."""
    layout, arrays = weights.find(files.read(path), path)
    config = weights.infer(layout, arrays, path)
    ours = weights.from_torch(layout, arrays, config, path, force)
    if layout is weights.MAE:
        drawn = weights.flat(*init_params(config, 0))
        return drawn | ours, config, "MAE's encoder, everything else drawn anew"
    return ours, config, f'{layout.name} layout'


def read_run(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], SamConfig, str]:
    """The same of the newest checkpoint of a run of ours."""
    options = checkpoints.read_config(str(workdir))
    config = plain(sam_config(**options.model))
    params, buffers, step = checkpoints.restore_params(str(workdir), options)
    return weights.flat(params, buffers), config, f'step {step}'


def write_run(target: pathlib.Path, arrays: dict[str, np.ndarray], config: SamConfig, defaults: ConfigDict) -> None:
    """A folder that holds one checkpoint, at step 0, and the config it belongs to."""
    options = defaults.copy_and_resolve_references()
    with options.unlocked():
        options.model.size = weights.size_name(config)
        options.model.image_size = config.image_size
    with files.whole(target) as unfinished:
        checkpoints.save_params(str(unfinished), options, *to_states(arrays, config))


def to_states(arrays: dict[str, np.ndarray], config: SamConfig) -> tuple[nnx.State, nnx.State]:
    """(params, buffers) of the model of `config`, still numpy arrays."""
    _, params, buffers = abstract_state(config)
    return tuple(
        nnx.from_flat_state([(path, leaf.replace(arrays['/'.join(map(str, path))])) for path, leaf in flat])
        for flat in (nnx.to_flat_state(params), nnx.to_flat_state(buffers))
    )


def plain(config: SamConfig) -> SamConfig:
    """`config` without what is a matter of training: a row of the table of sizes at some image size."""
    return dataclasses.replace(config, dtype='float32', drop_path=0.0, dropout=0.0, remat='none')
