"""The vocabulary of checkpoint tables: names of an array in PyTorch checkpoints and here, and the order of its axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class AxisOrder(NamedTuple):
    """How the axes of an array lie in PyTorch and here; both ways are views."""

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (PyTorch's array, our shape) -> our array
    to_torch: Callable[[np.ndarray], np.ndarray]


class CheckpointKey(NamedTuple):
    """An array of a checkpoint; `index` is its index along our first axes where ours stacks several of PyTorch's."""

    meta: str
    hugging_face: str
    ours: str
    axes: AxisOrder
    index: tuple[int, ...] = ()


SAME = AxisOrder(lambda x, shape: x, lambda x: x)
BATCHED = AxisOrder(lambda x, shape: x[0], lambda x: x[None])  # PyTorch has an axis more, of length 1
LINEAR = AxisOrder(lambda x, shape: x.T, lambda x: x.T)
CONV = AxisOrder(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
CONV_1X1 = AxisOrder(lambda x, shape: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
TRANSPOSED_CONV = AxisOrder(lambda x, shape: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
# Ours has attention heads as axes: inputs x (qkv x) heads x channels, and back.
HEADS_IN = AxisOrder(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
HEADS_BIAS = AxisOrder(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
HEADS_OUT = AxisOrder(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T)

# The arrays of a PyTorch layer: PyTorch's name, ours, order of axes.
Arrays = tuple[tuple[str, str, AxisOrder], ...]
NORM_ARRAYS = (('weight', 'scale', SAME), ('bias', 'bias', SAME))
LINEAR_ARRAYS = (('weight', 'kernel', LINEAR), ('bias', 'bias', SAME))
CONV_ARRAYS = (('weight', 'kernel', CONV), ('bias', 'bias', SAME))
TRANSPOSED_CONV_ARRAYS = (('weight', 'kernel', TRANSPOSED_CONV), ('bias', 'bias', SAME))


def keys_of_layer(
    meta: str, hugging_face: str, ours: str, arrays: Arrays, index: tuple[int, ...] = ()
) -> Iterable[CheckpointKey]:
    """The keys of all arrays of a layer with these names."""
    for torch_name, our_name, axes in arrays:
        yield CheckpointKey(f'{meta}.{torch_name}', f'{hugging_face}.{torch_name}', f'{ours}/{our_name}', axes, index)
