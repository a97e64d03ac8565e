"""The pickles in PyTorch's checkpoint files, read without running what they name.

Understood are tensors and plain containers.  What else `torch.load(weights_only=True)` admits becomes a `NotRead`, so
that it may lie beside a model.  Any other name is refused.
Source of the names: torch/_weights_only_unpickler.py of PyTorch 2.13.
"""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Callable, Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from samjax.errors import SamjaxError

# Types of elements by torch's names, little-endian.
DTYPES: Mapping[str, np.dtype] = {
    **{name: np.dtype(name) for name in ('bool', 'uint8', 'int8')},
    **{
        name: np.dtype(name).newbyteorder('<')
        for name in ('uint16', 'uint32', 'uint64', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')
    },
    **{name: np.dtype(name).newbyteorder('<') for name in ('complex64', 'complex128')},
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ('bfloat16', 'float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz')
    },
}
OTHER_DTYPES = (
    *('complex32', 'float8_e8m0fnu', 'float4_e2m1fn_x2', 'qint8', 'qint32', 'quint8', 'quint4x2', 'quint2x4'),
    *('bits8', 'bits16', 'bits1x8', 'bits2x4', 'bits4x2'),
    *(f'{sign}int{bits}' for sign in ('', 'u') for bits in range(1, 8)),
)
# Types of storages and tensors, such as FloatStorage and FloatTensor, and their elements.
ELEMENTS = {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
}
COMPLEX_ELEMENTS = {'ComplexDouble': 'complex128', 'ComplexFloat': 'complex64'}
OTHER_NAMES = (
    *(f'torch.{name}' for name in OTHER_DTYPES),
    *(f'torch.{name}Storage' for name in ('QInt32', 'QInt8', 'QUInt2x4', 'QUInt4x2', 'QUInt8')),
    *(f'torch.{module}{name}Tensor' for module in ('', 'cuda.') for name in ELEMENTS),
    *(f'torch.{module}sparse.{name}Tensor' for module in ('', 'cuda.') for name in ELEMENTS if name != 'Bool'),
    *('torch.Tensor', 'torch.device', 'torch.serialization._get_layout', 'torch.storage.TypedStorage'),
    *(f'torch.per_{kind}' for kind in ('tensor_affine', 'tensor_symmetric', 'channel_affine', 'channel_symmetric')),
    'torch.per_channel_affine_float_qparams',
    'torch._utils._rebuild_qtensor',
    'torch._utils._rebuild_sparse_tensor',
    'torch._utils._rebuild_meta_tensor_no_storage',
    'torch._utils._rebuild_nested_tensor',
    'torch._utils._rebuild_wrapper_subclass',
    'torch._utils._rebuild_device_tensor_from_numpy',
    *('_codecs.encode', 'builtins.bytearray', 'builtins.set', 'builtins.complex', 'collections.Counter'),
)


class NotRead:
    """Something that is no array and no plain container, of which only the name is kept."""

    name: str  # such as 'torch.device'

    @classmethod
    def of(cls, name: str) -> NotRead:
        return _not_read(name)()

    def __init__(self, *_):
        pass

    def __setstate__(self, state) -> None:
        pass


class Unpickler(pickle.Unpickler):
    """Knows the names above, and calls nothing else.

    load_storage: (key, elements, count) -> a storage of the file as a read-only array.
    """

    def __init__(self, file: BinaryIO, path, load_storage: Callable[[str, np.dtype, int], np.ndarray]):
        super().__init__(file, encoding='utf-8')
        self._path, self._load_storage = path, load_storage

    def find_class(self, module: str, name: str):
        full = f'{module.replace("__builtin__", "builtins")}.{name}'  # Python 2 called it so, and protocol 2 does
        if full in OTHER_NAMES:
            return _not_read(full)
        if full not in _READ_NAMES:
            raise SamjaxError(
                f'{self._path} asks to run {full}, and only tensors and plain containers are read: '
                f'do not trust it, or save its state dict alone'
            )
        return _READ_NAMES[full]

    def persistent_load(self, reference):
        kind, dtype, key, _, count, *view = reference
        if kind != 'storage' or any(view):
            raise pickle.UnpicklingError(f'unknown reference {kind!r}')
        if not isinstance(dtype, np.dtype):
            return dtype()  # a storage of elements that are not read
        return self._load_storage(str(key), dtype, count)


def _not_read(name: str) -> type[NotRead]:
    return type('NotRead', (NotRead,), {'name': name})


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray | NotRead:
    """torch._utils._rebuild_tensor_v2; looks only inside the storage, whatever the file says."""
    if isinstance(storage, NotRead):
        return storage
    if metadata:
        return NotRead.of('a conjugated or negated view')
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if min(size, default=1) < 0:
        raise pickle.UnpicklingError('a tensor has a negative size')
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset < 0 or min(stride, default=0) < 0 or last >= storage.size:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    steps = tuple(step * storage.itemsize for step in stride)
    return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * storage.itemsize, steps)


def _tensor_of_bytes(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    """torch._utils._rebuild_tensor_v3, for types of elements that have no class of storages."""
    if isinstance(storage, NotRead):
        return storage
    if not isinstance(dtype, np.dtype):
        return dtype()
    return _tensor(storage.view(dtype), offset, size, stride, requires_grad, hooks, metadata)


def _first(tensor, *_):
    """A parameter, or a tensor that was on another kind of device: what it was made of."""
    return tensor


def _subclass(rebuild, kind, arguments, state):
    """A tensor with attributes, or of a subclass of torch.Tensor."""
    return rebuild(*arguments)


_READ_NAMES = {
    'collections.OrderedDict': collections.OrderedDict,
    'torch.Size': tuple,
    'torch.nn.parameter.Parameter': _first,
    'torch._utils._rebuild_parameter': _first,
    'torch._utils._rebuild_parameter_with_state': _first,
    'torch._utils._rebuild_device_tensor_from_cpu_tensor': _first,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_bytes,
    'torch._tensor._rebuild_from_type_v2': _subclass,
    'torch.storage.UntypedStorage': DTYPES['uint8'],
    **{f'torch.{name}': dtype for name, dtype in DTYPES.items()},
    **{
        f'torch.{module}{name}Storage': DTYPES[dtype]
        for module in ('', 'cuda.')
        for name, dtype in {**ELEMENTS, **COMPLEX_ELEMENTS}.items()
    },
}
