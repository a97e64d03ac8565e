"""PyTorch's checkpoint files (.pth), read and written without PyTorch and without running what is pickled in them.

A file is a zip of raw little-endian tensor storages and one pickle that says which tensor lies where.  Reading maps
the storages into memory; of the pickle only tensors and plain containers are understood.
Source of the format: torch.save of PyTorch 1.6 and later.
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from samjax.errors import SamjaxError

STORAGES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}
ALIGNMENT = 64  # bytes, of storages in files we write: what torch does
LOCAL_HEADER = 30  # bytes before name and extra field of a zip member


def read(path: pathlib.Path):
    """What was saved in `path`, its tensors as read-only numpy arrays that lie in the file until they are used.

    Raises:
        SamjaxError: it is not such a file, is cut off, or has something else than tensors and containers in it.
    """
    try:
        with open(path, 'rb') as file, zipfile.ZipFile(file) as archive:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name == 'data.pkl' or name.endswith('/data.pkl')]
            if len(pickles) != 1:
                raise SamjaxError(f'{path} is a zip file but not one that torch.save wrote: name a PyTorch checkpoint')
            folder = pickles[0].removesuffix('data.pkl')
            order = members.get(f'{folder}byteorder')
            if order is not None and archive.read(order) != b'little':
                raise SamjaxError(f'{path} was saved on a big-endian machine: save it again on a common one')
            storages = {
                name.removeprefix(f'{folder}data/'): _member(path, memory, info)
                for name, info in members.items()
                if name.startswith(f'{folder}data/')
            }
            return _Unpickler(path, archive.read(pickles[0]), storages).load()
    except zipfile.BadZipFile:
        raise SamjaxError(_not_a_zip(path)) from None
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, SamjaxError):
            raise
        raise SamjaxError(f'{path} is damaged ({error}): fetch or save it again') from None


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes an OrderedDict of float32 tensors that torch.load reads, also with weights_only=True."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr('archive/data.pkl', _pickled(tensors))
        archive.writestr('archive/byteorder', b'little')
        for number, tensor in enumerate(tensors.values()):
            info = zipfile.ZipInfo(f'archive/data/{number}')
            at = archive.fp.tell() + LOCAL_HEADER + len(info.filename)
            # An extra field that says nothing fills up to the alignment: 'FB' and its length come before its zeros.
            fill = -(at + 4) % ALIGNMENT
            info.extra = struct.pack('<2sH', b'FB', fill) + bytes(fill)
            archive.writestr(info, np.ascontiguousarray(tensor, '<f4').data.cast('B') if tensor.size else b'')
        archive.writestr('archive/version', b'3\n')


class _Unpickler(pickle.Unpickler):
    """Knows the few names a file of tensors needs, and calls nothing else."""

    def __init__(self, path, pickled: bytes, storages: dict[str, np.ndarray]):
        super().__init__(io.BytesIO(pickled))
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str):
        if module == 'torch' and name in STORAGES:
            return STORAGES[name]
        known = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _tensor,
            ('torch._utils', '_rebuild_parameter'): _parameter,
            ('torch', 'Size'): tuple,
        }
        if (module, name) not in known:
            raise SamjaxError(
                f'{self._path} asks to run {module}.{name}, and only tensors and plain containers are read: '
                f'do not trust it, or save its state dict alone'
            )
        return known[module, name]

    def persistent_load(self, reference):
        kind, dtype, key, _, count = reference
        if kind != 'storage' or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f'unknown reference {kind!r}')
        data = self._storages[str(key)]
        if data.size < count * dtype.itemsize:
            raise pickle.UnpicklingError(f'storage {key} is shorter than it says')
        return data[: count * dtype.itemsize].view(dtype)


def _tensor(storage: np.ndarray, offset, size, stride, *_) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2; looks only inside the storage, whatever the file says."""
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset < 0 or min(stride, default=0) < 0 or min(size, default=1) < 0 or last >= storage.size:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(tensor: np.ndarray, *_) -> np.ndarray:
    return tensor


def _member(path, memory: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an uncompressed member, in place."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise SamjaxError(f'{path} is compressed, which torch.save never does: save it again with torch.save')
    at = info.header_offset
    name, extra = struct.unpack('<HH', memory[at + 26 : at + LOCAL_HEADER])
    start = at + LOCAL_HEADER + name + extra
    if start + info.file_size > len(memory):
        raise zipfile.BadZipFile
    return np.frombuffer(memory, np.uint8, info.file_size, start)


def _not_a_zip(path) -> str:
    with open(path, 'rb') as file:
        start = file.read(16)
    if start[:2] == b'PK':
        return f'{path} is cut off: fetch or copy it again'
    if start[:1] == b'\x80':
        return f'{path} was saved by PyTorch before 1.6: load it there and save it again'
    return f'{path} is not a PyTorch checkpoint: name a .pth, .pt or .bin file that torch.save wrote'


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Pickle, protocol 2, of OrderedDict(name -> torch tensor), written by hand because torch is not at hand."""

    def text(s: str) -> bytes:
        encoded = s.encode()
        return pickle.BINUNICODE + struct.pack('<I', len(encoded)) + encoded

    def integers(values) -> bytes:
        return pickle.MARK + b''.join(map(integer, values)) + pickle.TUPLE

    def integer(n: int) -> bytes:
        return pickle.BININT + struct.pack('<i', n) if n < 2**31 else pickle.LONG1 + b'\x08' + struct.pack('<q', n)

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()

    empty = name('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    out = [pickle.PROTO, b'\x02', empty, pickle.MARK]
    for number, (key, tensor) in enumerate(tensors.items()):
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
        storage = [
            *(pickle.MARK, text('storage'), name('torch', 'FloatStorage'), text(str(number)), text('cpu')),
            *(integer(tensor.size), pickle.TUPLE, pickle.BINPERSID),
        ]
        tensor_arguments = [*storage, integer(0), integers(tensor.shape), integers(strides), pickle.NEWFALSE, empty]
        rebuilt = [name('torch._utils', '_rebuild_tensor_v2'), pickle.MARK, *tensor_arguments, pickle.TUPLE]
        out += [text(key), *rebuilt, pickle.REDUCE]
    return b''.join([*out, pickle.SETITEMS, pickle.STOP])
