"""PyTorch's checkpoint files (.pth), read and written without PyTorch and without running what is pickled in them.

Since PyTorch 1.6 a file is a zip of raw little-endian tensor storages and one pickle that says which tensor lies where;
before, five pickles came one after the other, then the storages.  Reading maps the storages into memory.
Source of the formats: torch.save and torch.serialization._legacy_load of PyTorch 2.13.
"""

from __future__ import annotations

import io
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from samjax.convert.torch_pickle import NotRead, Unpickler
from samjax.errors import SamjaxError, one_line

ALIGNMENT = 64  # bytes, of storages in files we write: what torch does
LOCAL_HEADER = 30  # bytes before name and extra field of a zip member
OLD_START = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # of files before PyTorch 1.6: a number, pickled


def read(path: pathlib.Path):
    """What was saved in `path`, its tensors as read-only numpy arrays that lie in the file until they are used.

    Raises:
        SamjaxError: it is not such a file, is damaged, or has something else than tensors and containers in it.
    """
    with open(path, 'rb') as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        read_as = _read_old if memory[: len(OLD_START)] == OLD_START else _read_zip
        try:
            return read_as(path, file, memory)
        except SamjaxError:
            raise
        except zipfile.BadZipFile:
            raise SamjaxError(f'{path} is cut off or damaged: fetch or copy it again') from None
        except Exception as error:  # a damaged pickle or zip leads to errors of many kinds
            reason = one_line(error) or type(error).__name__
            raise SamjaxError(f'{path} is damaged ({reason}): fetch or save it again') from None


def _read_zip(path: pathlib.Path, file: BinaryIO, memory: mmap.mmap):
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == 'data.pkl' or name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise SamjaxError(f'{path} is a zip file but not one that torch.save wrote: name a PyTorch checkpoint')
        folder = pickles[0].removesuffix('data.pkl')
        if f'{folder}constants.pkl' in members:
            raise SamjaxError(f'{path} is a TorchScript program: save the state dict of the model with torch.save')
        order = members.get(f'{folder}byteorder')
        if order is not None and archive.read(order) != b'little':
            raise SamjaxError(f'{path} was saved on a big-endian machine: save it again on a common one')
        storages = {}

        def load_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            if key not in storages:
                storages[key] = _member(path, memory, members[f'{folder}data/{key}'])
            if not 0 <= count * dtype.itemsize <= storages[key].size:
                raise pickle.UnpicklingError(f'storage {key} is shorter than it says')
            return storages[key][: count * dtype.itemsize].view(dtype)

        return Unpickler(io.BytesIO(archive.read(pickles[0])), path, load_storage).load()


def _read_old(path: pathlib.Path, file: BinaryIO, memory: mmap.mmap):
    """A file of PyTorch before 1.6, or of torch.save(.., _use_new_zipfile_serialization=False).

    Its storages follow in an order that is known only after the pickle that uses them, which is therefore read twice.
    """
    item_sizes = {}  # key of a storage -> bytes of an element

    def note_item_size(key: str, dtype: np.dtype, count: int) -> NotRead:
        item_sizes[key] = dtype.itemsize
        return NotRead()

    def load_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        return storages[key][: count * dtype.itemsize].view(dtype)

    def load(storage=None):
        return Unpickler(file, path, storage).load()

    _number, _version, system = load(), load(), load()
    if not system['little_endian']:
        raise SamjaxError(f'{path} was saved on a big-endian machine: save it again on a common one')
    start = file.tell()
    load(note_item_size)
    keys = load()
    content, storages, at = np.frombuffer(memory, np.uint8), {}, file.tell()
    for key in keys:
        [count] = struct.unpack_from('<q', memory, at)
        end = at + 8 + count * item_sizes[key]
        if not at + 8 <= end <= len(memory):
            raise EOFError('it ends within a storage')
        storages[key], at = content[at + 8 : end], end
    file.seek(start)
    return load(load_storage)


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


def _member(path, memory: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an uncompressed member, in place, checked against their CRC-32."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise SamjaxError(f'{path} is compressed, which torch.save never does: save it again with torch.save')
    at = info.header_offset
    name, extra = struct.unpack('<HH', memory[at + 26 : at + LOCAL_HEADER])
    start = at + LOCAL_HEADER + name + extra
    if start + info.file_size > len(memory):
        raise zipfile.BadZipFile
    data = np.frombuffer(memory, np.uint8, info.file_size, start)
    if zlib.crc32(data) != info.CRC:
        raise SamjaxError(f'{path} is damaged (wrong CRC-32 of {info.filename}): fetch or save it again')
    return data


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
