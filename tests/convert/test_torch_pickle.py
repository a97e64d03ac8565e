"""Pickles of PyTorch: what may be in a file, and that nothing else is called."""

import builtins
import collections
import contextlib
import functools
import importlib
import io
import operator
import os
import pickle
import struct
import subprocess

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from samjax.convert import torch_file, torch_pickle
from samjax.convert.torch_pickle import NotRead
from samjax.errors import SamjaxError


def read(tmp_path, value, **options):
    torch.save(value, tmp_path / 'x.pth', **options)
    return torch_file.read(tmp_path / 'x.pth')


def unpickled(data: bytes):
    return torch_pickle.Unpickler(io.BytesIO(data), 'x.pth', None).load()


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# ---- what torch.load(weights_only=True) admits -----------------------------------------------------


def test_names_are_those_of_torch():
    assert {*torch_pickle._READ_NAMES, *torch_pickle.OTHER_NAMES} == _get_allowed_globals().keys()


@pytest.mark.parametrize('old', [False, True], ids=['zip', 'before 1.6'])
@pytest.mark.parametrize(
    'beside',
    [
        collections.Counter('abca'),
        {1, 2},
        {torch.float16, torch.float8_e4m3fn, torch.int4, torch.complex32},
        {torch.device('cpu'): torch.device('cuda:1')},
        [torch.Size([2, 3]), b'bytes', bytearray(b'more'), 1 + 2j, None, 2**70],
        {b'key': 1, 2: [], 'none': {}},
        torch.eye(2).to_sparse(),
        torch.empty(3, device='meta'),
        torch.nn.Parameter(torch.ones(2)),
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_that_torch_admits_may_lie_beside_tensors(tmp_path, beside, old):
    value = {'weight': torch.tensor([1.0, 2.0]), 'beside': beside}
    found = read(tmp_path, value, _use_new_zipfile_serialization=not old)
    np.testing.assert_array_equal(found['weight'], np.array([1, 2], np.float32))
    assert found.keys() == value.keys()


@pytest.mark.parametrize(
    ('torch_dtype', 'dtype'),
    [
        *((getattr(torch, name), name) for name in ('uint8', 'int8', 'int16', 'int32', 'int64', 'bool')),
        *((getattr(torch, name), name) for name in ('uint16', 'uint32', 'uint64', 'complex64', 'complex128')),
        *((getattr(torch, name), name) for name in ('float16', 'float32', 'float64')),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        (torch.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz),
        (torch.float8_e5m2fnuz, ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_tensors_of_every_type(tmp_path, torch_dtype, dtype):
    """Among them rows of a larger storage, with an offset and strides."""
    whole = torch.tensor([[0.0, 1.0, 1.5], [2.0, 0.25, 6.0]]).to(torch_dtype)
    found = read(tmp_path, {'whole': whole, 'row': whole[1], 'turned': whole.T})
    expected = np.array([[0, 1, 1.5], [2, 0.25, 6]], np.float32).astype(np.dtype(dtype))
    assert found['whole'].dtype == expected.dtype
    np.testing.assert_array_equal(found['whole'], expected)
    np.testing.assert_array_equal(found['row'], expected[1])
    np.testing.assert_array_equal(found['turned'], expected.T)


def test_what_is_no_dense_tensor_keeps_its_name(tmp_path):
    found = read(tmp_path, {'sparse': torch.eye(2).to_sparse(), 'device': torch.device('cpu')})
    assert isinstance(found['sparse'], NotRead)
    assert found['sparse'].name == 'torch._utils._rebuild_sparse_tensor'
    assert found['device'].name == 'torch.device'


def test_parameters_with_attributes_are_tensors(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.note = 'mine'
    np.testing.assert_array_equal(read(tmp_path, [parameter])[0], [0, 1, 2])


@pytest.mark.parametrize(
    ('offset', 'size', 'stride'),
    [(0, (3,), (1,)), (1, (2,), (1,)), (0, (2,), (2,)), (2, (1,), (1,)), (-1, (1,), (1,)), (1, (2,), (-1,))]
    + [(0, (2, 2), (1, 1)), (0, (-1,), (1,)), (0, (2**62, 4), (0, 1))],
)
def test_tensors_stay_inside_their_storage(offset, size, stride):
    storage = np.zeros(2, np.float32)
    assert torch_pickle._tensor(storage, 1, (1,), (1,)).shape == (1,)
    assert torch_pickle._tensor(storage, 0, (3, 2), (0, 1)).shape == (3, 2)
    with pytest.raises(pickle.UnpicklingError, match='a tensor (reaches beyond its storage|has a negative size)'):
        torch_pickle._tensor(storage, offset, size, stride)


# ---- anything else is refused by name, and never called --------------------------------------------


@pytest.mark.parametrize(
    ('payload', 'name'),
    [
        (Call(eval, "open('stolen', 'w')"), 'builtins.eval'),
        (Call(exec, "open('stolen', 'w')"), 'builtins.exec'),
        (Call(open, 'stolen', 'w'), 'io.open'),
        (Call(getattr, 'x', 'upper'), 'builtins.getattr'),
        (Call(builtins.__import__, 'os'), 'builtins.__import__'),
        (Call(setattr, 'x', 'y', 'z'), 'builtins.setattr'),
        (Call(map, len, ['x']), '(builtins.map|itertools.imap)'),
        (Call(type, 'T', (), {}), 'builtins.type'),
        (Call(print, 'hello'), 'builtins.print'),
        (range(3), 'builtins.(x)?range'),
        (object(), 'builtins.object'),
        (collections.deque([1]), 'collections.deque'),
        (collections.defaultdict(list), 'collections.defaultdict'),
        (collections.ChainMap({}), '(copy_?reg._reconstructor|collections.ChainMap)'),
        (Call(os.system, 'touch stolen'), '(posix|nt).system'),
        (Call(os.mkdir, 'stolen'), '(posix|nt).mkdir'),
        (Call(subprocess.getoutput, 'touch stolen'), '(subprocess|commands).getoutput'),
        (Call(importlib.import_module, 'os'), 'importlib.import_module'),
        (Call(operator.attrgetter, 'x'), 'operator.attrgetter'),
        (functools.partial(open, 'stolen', 'w'), 'functools.partial'),
        (Call(torch.load, 'x'), 'torch.serialization.load'),
        (Call(torch.hub.load, 'x', 'y'), 'torch.hub.load'),
        (torch.nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
        (np.float64(3), 'numpy._core.multiarray.scalar'),
        (np.ones(2), 'numpy._core.multiarray._reconstruct'),
        (np.dtype('int8'), 'numpy.dtype'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_other_names_are_refused(tmp_path, monkeypatch, payload, name):
    monkeypatch.chdir(tmp_path)
    torch.save({'weight': torch.ones(2), 'x': payload}, 'x.pth')
    with pytest.raises(SamjaxError, match=rf'^x.pth asks to run {name}, and only tensors and plain containers'):
        torch_file.read('x.pth')
    for protocol in (0, 2, 4, 5):
        with pytest.raises(SamjaxError, match='asks to run '):
            unpickled(pickle.dumps(payload, protocol))
    assert os.listdir() == ['x.pth']


def global_call(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode() + b')R.'


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        ('__builtin__', 'eval'),
        ('__builtin__', 'frozenset'),
        ('builtins', 'getattr'),
        ('builtins', 'list'),
        ('builtins', 'OrderedDict'),
        ('collections', 'eval'),
        ('collections', 'OrderedDict.fromkeys'),
        ('collections.abc', 'OrderedDict'),
        ('torch', 'UnknownStorage'),
        ('torch', 'save'),
        ('torch', 'os.system'),
        ('torch._utils', '_rebuild_xla_tensor'),
        ('torch._utils', '_import_dotted_name'),
        ('torch._utils', '_rebuild_tensor_v2.__globals__'),
        ('torch.storage', '_load_from_bytes'),
        ('torch.anything', 'FloatStorage'),
        ('samjax.convert.torch_pickle', '_tensor'),
        ('os', 'system'),
        ('nt', 'system'),
        ('sys', 'exit'),
        (' ', ' '),
    ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_names_in_pickles_by_hand_are_refused(module, name, protocol):
    def text(word):
        return b'\x8c' + struct.pack('B', len(word)) + word.encode()

    data = global_call(module, name) if protocol == 2 else b'\x80\x04' + text(module) + text(name) + b'\x93)R.'
    with pytest.raises(SamjaxError, match='asks to run '):
        unpickled(data)


def test_extensions_of_copyreg_and_other_references_are_refused():
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        unpickled(b'\x82\x01.')  # a class by a number that the process may have registered
    module = b'(X\x06\x00\x00\x00moduleNX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ.'
    with pytest.raises(pickle.UnpicklingError, match="unknown reference 'module'"):
        unpickled(module)


def test_state_set_by_a_pickle_changes_nothing_that_stays():
    """BUILD gives an object attributes; the classes and functions of the next file must not have them."""
    state = pickle.dumps((None, {'name': 'changed', 'fromkeys': 1}), 2)[2:-1]
    for name in (b'collections\nCounter', b'collections\nOrderedDict', b'torch\nSize'):
        with contextlib.suppress(TypeError, AttributeError, pickle.UnpicklingError):
            unpickled(b'\x80\x02c' + name + b'\n' + state + b'b.')
    assert collections.Counter.fromkeys != 1
    assert collections.OrderedDict.fromkeys != 1
    assert unpickled(b'\x80\x02ccollections\nCounter\n)R.').name == 'collections.Counter'
