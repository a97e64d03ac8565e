"""Bilinear resizing against a worked example and JAX's own."""

import jax
import numpy as np
import pytest

from samjax.masks import resize


def test_upsample_of_two_pixels():
    np.testing.assert_allclose(resize.upsample(np.array([[0.0, 4.0]]), 2), [[0, 1, 3, 4]] * 2)


@pytest.mark.parametrize('factor', [1, 2, 3, 4, 8])
def test_upsample_equals_interpolation(factor):
    x = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    expected = jax.image.resize(x, (2, 5 * factor, 7 * factor), 'bilinear', antialias=False)
    np.testing.assert_allclose(resize.upsample(x, factor), expected, atol=1e-6)


@pytest.mark.parametrize('factor', [1, 2, 3, 4])
def test_gradient_of_upsample_equals_that_of_interpolation(factor):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 5 * factor, 7 * factor))

    def gradient(upsample):
        return jax.grad(lambda x: (upsample(x) * weight).sum())(x.astype(np.float32))

    expected = gradient(lambda x: jax.image.resize(x, weight.shape, 'bilinear', antialias=False))
    np.testing.assert_allclose(gradient(lambda x: resize.upsample(x, factor)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [(13, 4), (5, 7), (3, 20), (1, 1)])
def test_linear_matrix_equals_interpolation_both_ways(size):
    x = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    expected = jax.image.resize(x, size, 'bilinear', antialias=False)
    actual = resize.linear_matrix(5, size[0]) @ x @ resize.linear_matrix(7, size[1]).T
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_taps_by_hand():
    """Two inputs become four outputs; nothing is taken from before the first or beyond the last input."""
    taps = resize.linear_taps(2, 4)
    assert taps.first_n.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(taps.weight_nt, [[1, 0], [0.75, 0.25], [0.25, 0.75], [1, 0]])
    np.testing.assert_allclose(resize.linear_taps(1, 3).weight_nt, [[1, 0]] * 3)
