"""Checkpoint files of PyTorch, safetensors and Hugging Face: read by what they are, written whole or not at all."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from samjax.convert import huggingface, torch_file
from samjax.convert.torch_pickle import DTYPES, NotRead
from samjax.errors import SamjaxError
from samjax.model.config import SamConfig
from samjax.storage import atomic, local_path, os_errors

PTH_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt')  # of files of torch.save
PART = re.compile(r'-\d+-of-(\d+)\.[a-z]+$', re.IGNORECASE)  # of one checkpoint in several files
ZIP = b'PK\x03\x04'
ARCHIVES = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'7z\xbc\xaf', b'Rar!', b'(\xb5/\xfd')  # gzip, bzip2, xz, 7z, rar, zstd
MAX_HEADER = 100_000_000  # bytes, of a safetensors file, as the library has it
SAFETENSORS_DTYPES = {  # its names -> those of torch
    'BOOL': 'bool',
    'U8': 'uint8',
    'I8': 'int8',
    'U16': 'uint16',
    'I16': 'int16',
    'U32': 'uint32',
    'I32': 'int32',
    'U64': 'uint64',
    'I64': 'int64',
    'F16': 'float16',
    'F32': 'float32',
    'F64': 'float64',
    'C64': 'complex64',
    'BF16': 'bfloat16',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E4M3FNUZ': 'float8_e4m3fnuz',
    'F8_E5M2': 'float8_e5m2',
    'F8_E5M2FNUZ': 'float8_e5m2fnuz',
}


def read(path: pathlib.Path):
    """What a file of PyTorch or safetensors, or a folder of Hugging Face or its index, holds; arrays are numpy's.

    What a file is, is read from its first bytes, whatever its name says.

    Raises:
        SamjaxError: there is no such file, or it cannot be read.
    """
    local_path.refuse_address(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        if not path.exists():
            raise SamjaxError(f'{path} does not exist: name a .pth or .safetensors file, or a folder')
        return _read_file(path)
    except OSError as error:
        raise SamjaxError(
            f'{path} cannot be read ({error.strerror or error}): {os_errors.remedy(error)}, or name another file'
        ) from None


def _read_folder(path: pathlib.Path):
    """A Hugging Face folder: one file of weights, or several that an index lists."""
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (path / f'{name}.index.json').exists():
            return _read_shards(path / f'{name}.index.json')
        if (path / name).exists():
            return read(path / name)
    others = sorted(file.name for file in path.iterdir() if file.suffix.lower() in (*PTH_SUFFIXES, '.safetensors'))
    remedy = f'name a file, such as {path / others[0]}' if others else 'name a folder of weights'
    raise SamjaxError(f'{path} holds neither model.safetensors nor pytorch_model.bin: {remedy}')


def _read_shards(index: pathlib.Path) -> dict:
    """The arrays of all files that an index of Hugging Face lists."""
    try:
        names = sorted({pathlib.Path(name).name for name in json.loads(index.read_bytes())['weight_map'].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise SamjaxError(f'{index} is not an index of weights: fetch it again') from None
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise SamjaxError(
            f'{index} lists files that are not there ({", ".join(absent)}): fetch them into the same folder'
        )
    arrays = {}
    for name in names:
        content = _read_file(index.parent / name, is_part=True)
        if not isinstance(content, Mapping):
            raise SamjaxError(f'{index.parent / name} is not a part of a checkpoint: fetch it again')
        arrays |= content
    return arrays


def _read_file(path: pathlib.Path, is_part: bool = False):
    """is_part: of a checkpoint in several files."""
    if not path.is_file():
        raise SamjaxError(f'{path} is neither a file nor a folder: name a checkpoint')
    part = PART.search(path.name)
    if part and int(part[1]) > 1 and not is_part:
        raise SamjaxError(f'{path} is one of {int(part[1])} parts of a checkpoint: name their folder')
    with open(path, 'rb') as file:
        start = file.read(512)
    if start.startswith((ZIP, torch_file.OLD_START)):
        return torch_file.read(path)
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < MAX_HEADER:
        return _read_safetensors(path)
    if start[:1] == b'{':
        return _read_shards(path)
    raise SamjaxError(f'{path} {_what_else(start, path)}')


def _what_else(start: bytes, path: pathlib.Path) -> str:
    """What a file is that holds no weights, and what to do, given its first bytes."""
    if not start:
        return 'is empty: fetch or save it again'
    if start.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer, not the file itself: run git lfs pull in its folder'
    if start.lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
        return 'is a web page, not a checkpoint: fetch the file itself, by its download link'
    if start.startswith(ARCHIVES) or start[257:262] == b'ustar':
        return 'is an archive: unpack it, and name the checkpoint in it'
    if path.suffix.lower() == '.safetensors':
        return 'is not a complete safetensors file: fetch or save it again'
    if not any(start):
        return 'begins with zeros only, as after a broken download: fetch or copy it again'
    if start.startswith(b'PK'):
        return 'is cut off: fetch or copy it again'
    return 'is not a PyTorch checkpoint: name a .pth, .pt or .bin file that torch.save wrote'


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray | NotRead]:
    """Arrays that lie in the file until they are used."""
    try:
        with safetensors.safe_open(path, 'np') as file:  # checks the header against the size of the file
            names = list(file.keys())
    except safetensors.SafetensorError as error:
        raise SamjaxError(f'{path} is not a complete safetensors file ({error}): fetch or save it again') from None
    content = np.memmap(path, np.uint8, 'r')
    begin = 8 + int.from_bytes(content[:8].tobytes(), 'little')
    header, arrays = json.loads(content[8:begin].tobytes()), {}
    for name in names:
        dtype, (first, end) = header[name]['dtype'], header[name]['data_offsets']
        if dtype in SAFETENSORS_DTYPES:
            data = content[begin + first : begin + end].view(DTYPES[SAFETENSORS_DTYPES[dtype]], np.ndarray)
            arrays[name] = data.reshape(header[name]['shape'])
        else:
            arrays[name] = NotRead.of(dtype)
    return arrays


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
    path.touch()
    mode = path.stat().st_mode  # of any new file; the library makes one that only its owner may read
    try:
        safetensors.numpy.save_file(contiguous, path, metadata={'format': 'pt'})
        path.chmod(mode)
    except safetensors.SafetensorError as error:  # among others what the system says about the disk
        raise OSError(f'{path} cannot be written ({error})') from None
