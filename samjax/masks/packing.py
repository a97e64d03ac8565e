"""Compact forms of mask arrays: non-zero words between processes, eight rows in a byte between host and device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class SparseArray(NamedTuple):
    """A uint8 array of which most is 0."""

    shape: tuple[int, ...]
    index: np.ndarray  # uint32, of each word that is not 0 in the flattened array
    words: np.ndarray  # these words: uint64, or uint8 if the size of the array is no multiple of 8


def to_sparse(packed: np.ndarray) -> SparseArray:
    """Of a uint8 array in C order.  It makes the copy from a data worker to the training process small."""
    words = packed.reshape(-1).view(np.uint8 if packed.size % 8 else np.uint64)
    index = np.flatnonzero(words).astype(np.uint32)
    return SparseArray(packed.shape, index, words[index])


def to_dense(sparse: SparseArray) -> np.ndarray:
    """The uint8 array that `to_sparse` was given."""
    packed = np.zeros(sparse.shape, np.uint8)
    packed.reshape(-1).view(sparse.words.dtype)[sparse.index] = sparse.words
    return packed


def pack_rows(masks_HW: np.ndarray) -> np.ndarray:
    """bool (..., H, W) -> uint8 (..., V, W), V = ceil(H / 8): bit k of a byte is row 8 v + k, rows beyond H are 0."""
    return np.packbits(masks_HW, axis=-2, bitorder='little')


def unpack_rows(packed_VW: jax.Array, height: int) -> jax.Array:
    """uint8 (..., V, W) -> bool (..., height, W).

    A byte holds rows, not columns, so that the last axis, which lies in the lanes of a TPU, need not be reshaped.
    """
    *lead, v, w = packed_VW.shape
    shifts = jnp.arange(8, dtype=jnp.uint8).reshape(*[1] * (len(lead) + 1), 8, 1)
    bits_V8W = packed_VW[..., None, :] >> shifts & 1
    return bits_V8W.reshape(*lead, 8 * v, w)[..., :height, :].astype(bool)
