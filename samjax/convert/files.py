"""Checkpoint files of PyTorch, safetensors and Hugging Face: read by what they are, written whole or not at all."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from samjax.convert import huggingface, torch_file
from samjax.errors import SamjaxError
from samjax.model.config import SamConfig
from samjax.storage import atomic


def read(path: pathlib.Path):
    """What a file of PyTorch or safetensors, or a folder of Hugging Face, holds; arrays are numpy's.

    Raises:
        SamjaxError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise SamjaxError(f'{path} does not exist: name a .pth or .safetensors file, or a folder')
    return _read_safetensors(path) if path.suffix == '.safetensors' else torch_file.read(path)


def _read_folder(path: pathlib.Path):
    """A Hugging Face folder: one file of weights, or several that an index lists."""
    index = path / 'model.safetensors.index.json'
    if index.exists():
        try:
            parts = sorted(set(json.loads(index.read_text())['weight_map'].values()))
        except (ValueError, KeyError, AttributeError):
            raise SamjaxError(f'{index} is not an index of weights: fetch it again') from None
        return {key: value for part in parts for key, value in read(path / pathlib.Path(part).name).items()}
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (path / name).exists():
            return read(path / name)
    raise SamjaxError(f'{path} holds neither model.safetensors nor pytorch_model.bin: name a folder of weights')


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise SamjaxError(f'{path} is not a complete safetensors file ({error}): fetch or save it again') from None


def write_pth(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic.new_path(path) as unfinished:
        torch_file.write(unfinished, arrays)


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic.new_path(path) as unfinished:
        _save_safetensors(unfinished, arrays)


def write_hugging_face(path: pathlib.Path, arrays: Mapping[str, np.ndarray], config: SamConfig) -> None:
    """A folder that transformers' `SamModel.from_pretrained` and `SamProcessor.from_pretrained` load."""
    model, processor = huggingface.model_json(config), huggingface.processor_json(config)
    with atomic.new_path(path) as unfinished:
        unfinished.mkdir()
        (unfinished / 'config.json').write_text(json.dumps(model, indent=2) + '\n')
        (unfinished / 'preprocessor_config.json').write_text(json.dumps(processor, indent=2) + '\n')
        _save_safetensors(unfinished / 'model.safetensors', arrays)


def _save_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    contiguous = {key: np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    try:
        safetensors.numpy.save_file(contiguous, path, metadata={'format': 'pt'})
    except safetensors.SafetensorError as error:  # among others what the system says about the disk
        raise OSError(f'{path} cannot be written ({error})') from None
