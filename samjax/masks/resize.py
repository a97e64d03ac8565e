"""Bilinear resizing exactly as PyTorch's `interpolate(align_corners=False, antialias=False)` does it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """(..., y, x) -> (..., y factor, x factor) by linear interpolation of neighbours; cheap and exact."""
    return _upsample(_upsample(x, factor, -1), factor, -2)


def _upsample(x: jax.Array, factor: int, axis: int) -> jax.Array:
    n, cut = x.shape[axis], functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, n - 1)], axis)
    after = jnp.concatenate([cut(1, n), cut(n - 1, n)], axis)
    # Output pixel j of input pixel i lies at i + offset[j]: between i and a neighbour.
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    phases = [
        (1 - abs(o)) * x + abs(o) * (before if o < 0 else after) if o else x
        for o in offsets.astype(np.float32).tolist()
    ]
    shape = list(x.shape)
    shape[axis] = n * factor
    return jnp.stack(phases, x.ndim + axis + 1).reshape(shape)


class Taps(NamedTuple):
    """How one axis is resized: an output is the sum of a few neighbouring inputs, each with a weight."""

    first_n: np.ndarray  # int32, the first of them
    weight_nt: np.ndarray  # float32; the sum is 1, what lies beyond the last input is 0


def taps(n_in: int, n_out: int) -> Taps:
    """Of two inputs for each output."""
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0)
    low = np.minimum(position.astype(np.int32), n_in - 1)
    weight = np.where(low + 1 < n_in, position - low, 0).astype(np.float32)
    return Taps(low, np.stack([1 - weight, weight], -1))


def chained(first: Taps, second: Taps) -> Taps:
    """One resizing after another: of the inputs of `first` for each output of `second`, four of them."""
    places, weights = [], []
    for step in range(2):
        middle = np.minimum(second.first_n + step, len(first.first_n) - 1)
        for more in range(2):
            places.append(first.first_n[middle] + more)
            weights.append(second.weight_nt[:, step] * first.weight_nt[middle, more])
    start, weight_n4 = places[0], np.zeros((len(second.first_n), 4), np.float32)
    for place, weight in zip(places, weights, strict=True):
        np.add.at(weight_n4, (np.arange(len(start)), np.minimum(place - start, 3)), weight)
    return Taps(start, weight_n4)


def matrix(n_in: int, n_out: int) -> np.ndarray:
    """float32 (n_out, n_in) matrix that resizes one axis: `matrix(H, y) @ low_yx @ matrix(W, x).T`."""
    first_n, weight_n2 = taps(n_in, n_out)
    result = np.zeros((n_out, n_in), np.float32)
    for step in range(2):
        np.add.at(result, (np.arange(n_out), np.minimum(first_n + step, n_in - 1)), weight_n2[:, step])
    return result


def cubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """The same for cubic convolution with a = -0.75 as PyTorch's `mode='bicubic'`; jax.image.resize has a = -0.5."""
    a = -0.75
    position = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    first = np.floor(position).astype(int)
    result = np.zeros((n_out, n_in), np.float32)
    for neighbour in range(-1, 3):
        t = np.abs(position - (first + neighbour))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        weight = np.where(t <= 1, near, far).astype(np.float32)
        np.add.at(result, (np.arange(n_out), np.clip(first + neighbour, 0, n_in - 1)), weight)
    return result
