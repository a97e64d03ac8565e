"""Area of masks and their intersection over union, for numpy arrays and for JAX arrays inside of jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array


def mask_area(mask_HW: Array) -> Array:
    """Pixels of bool masks, over the last two axes."""
    if isinstance(mask_HW, jax.Array):
        return mask_HW.sum((-2, -1))
    lead, pixels = mask_HW.shape[:-2], mask_HW.shape[-2] * mask_HW.shape[-1]
    # Counting one mask at a time is many times faster than a sum over axes.
    return np.array([np.count_nonzero(m) for m in mask_HW.reshape(-1, pixels)], int).reshape(lead)


def mask_iou(a_HW: Array, b_HW: Array, area_HW: Array | None = None) -> Array:
    """Intersection over union of bool masks, over the last two axes; leading axes broadcast.

    area_HW: bool, the pixels that count; None: all.
    Two masks without pixels agree: 1.  float64 for numpy, float32 for JAX.
    """
    if area_HW is not None:
        a_HW, b_HW = a_HW & area_HW, b_HW & area_HW
    intersection = mask_area(a_HW & b_HW)
    if isinstance(intersection, jax.Array):
        union, xp = mask_area(a_HW | b_HW), jnp
    else:  # numpy makes no array of the size of both masks for it
        union, xp = mask_area(a_HW) + mask_area(b_HW) - intersection, np
    return xp.where(union > 0, intersection / xp.maximum(union, 1), 1.0)
