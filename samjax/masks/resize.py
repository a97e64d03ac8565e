"""Bilinear resizing exactly as PyTorch's `interpolate(align_corners=False, antialias=False)` does it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """(..., y, x) -> (..., y factor, x factor) by linear interpolation of neighbours, without a gather."""
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
    """The interpolation taps of one axis: output n is a weighted sum of t neighbouring inputs."""

    first_n: np.ndarray  # int32, index of the first of these inputs
    weight_nt: np.ndarray  # float32; weights of an output sum to 1, and are 0 beyond the last input


def linear_taps(n_in: int, n_out: int) -> Taps:
    """Two taps for each output."""
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0)
    low = np.minimum(position.astype(np.int32), n_in - 1)
    weight = np.where(low + 1 < n_in, position - low, 0).astype(np.float32)
    return Taps(low, np.stack([1 - weight, weight], -1))


def compose_taps(first: Taps, second: Taps) -> Taps:
    """`first` and then `second`, of two taps each: four inputs of `first` for each output of `second`."""
    inputs, weights = [], []
    for outer in range(2):
        middle = np.minimum(second.first_n + outer, len(first.first_n) - 1)
        for inner in range(2):
            inputs.append(first.first_n[middle] + inner)
            weights.append(second.weight_nt[:, outer] * first.weight_nt[middle, inner])
    start, weight_n4 = inputs[0], np.zeros((len(second.first_n), 4), np.float32)
    for index, weight in zip(inputs, weights, strict=True):
        np.add.at(weight_n4, (np.arange(len(start)), np.minimum(index - start, 3)), weight)
    return Taps(start, weight_n4)


def linear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """float32 (n_out, n_in), resizes one axis: `linear_matrix(y, H) @ low_res_yx @ linear_matrix(x, W).T`."""
    first_n, weight_n2 = linear_taps(n_in, n_out)
    matrix = np.zeros((n_out, n_in), np.float32)
    for tap in range(2):
        np.add.at(matrix, (np.arange(n_out), np.minimum(first_n + tap, n_in - 1)), weight_n2[:, tap])
    return matrix


def cubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`linear_matrix` for cubic convolution, with a = -0.75 as PyTorch's `mode='bicubic'` (jax.image.resize: -0.5)."""
    a = -0.75
    position = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((n_out, n_in), np.float32)
    for neighbour in range(-1, 3):
        t = np.abs(position - (first + neighbour))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        weight = np.where(t <= 1, near, far).astype(np.float32)
        np.add.at(matrix, (np.arange(n_out), np.clip(first + neighbour, 0, n_in - 1)), weight)
    return matrix
