"""Masks with eight rows in a byte: how they travel from the loader to the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def pack_rows(masks_HW: np.ndarray) -> np.ndarray:
    """bool (..., H, W) -> uint8 (..., V, W), V = ceil(H / 8): bit k of a byte is row 8 v + k, rows beyond H are 0."""
    return np.packbits(masks_HW, axis=-2, bitorder='little')


def unpack_rows(packed_VW: jax.Array, height: int) -> jax.Array:
    """uint8 (..., V, W) -> bool (..., height, W).  Rows, not columns, lie in a byte: lanes stay lanes on a TPU."""
    *lead, v, w = packed_VW.shape
    places = jnp.arange(8, dtype=jnp.uint8).reshape(*[1] * (len(lead) + 1), 8, 1)
    bits_V8W = packed_VW[..., None, :] >> places & 1
    return bits_V8W.reshape(*lead, 8 * v, w)[..., :height, :].astype(bool)
