"""How masks travel: as what is not 0 from a data worker to the training process, eight rows in a byte to the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sparse(NamedTuple):
    """An array that is mostly 0."""

    shape: tuple[int, ...]
    places: np.ndarray  # of the words that are not 0
    words: np.ndarray  # the same, as uint64, or as bytes if there are not eight of them


def to_sparse(packed: np.ndarray) -> Sparse:
    """Of a uint8 array in C order; the copy between processes is what it spares."""
    words = packed.reshape(-1).view(np.uint8 if packed.size % 8 else np.uint64)
    places = np.flatnonzero(words).astype(np.uint32)
    return Sparse(packed.shape, places, words[places])


def to_dense(sparse: Sparse) -> np.ndarray:
    """uint8, what `to_sparse` was given."""
    packed = np.zeros(sparse.shape, np.uint8)
    packed.reshape(-1).view(sparse.words.dtype)[sparse.places] = sparse.words
    return packed


def pack_rows(masks_HW: np.ndarray) -> np.ndarray:
    """bool (..., H, W) -> uint8 (..., V, W), V = ceil(H / 8): bit k of a byte is row 8 v + k, rows beyond H are 0."""
    return np.packbits(masks_HW, axis=-2, bitorder='little')


def unpack_rows(packed_VW: jax.Array, height: int) -> jax.Array:
    """uint8 (..., V, W) -> bool (..., height, W).  Rows, not columns, lie in a byte: lanes stay lanes on a TPU."""
    *lead, v, w = packed_VW.shape
    places = jnp.arange(8, dtype=jnp.uint8).reshape(*[1] * (len(lead) + 1), 8, 1)
    bits_V8W = packed_VW[..., None, :] >> places & 1
    return bits_V8W.reshape(*lead, 8 * v, w)[..., :height, :].astype(bool)
