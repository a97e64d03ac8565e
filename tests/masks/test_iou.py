"""Intersection over union of masks by hand, and the same for numpy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.masks.iou import mask_area, mask_iou


@pytest.mark.parametrize('iou', [mask_iou, jax.jit(mask_iou)], ids=['numpy', 'jit'])
def test_worked_example(iou):
    a = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    b = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool)
    empty = np.zeros((2, 4), bool)
    assert float(iou(a, b)) == pytest.approx(2 / 6)
    assert iou(a, a) == 1
    assert iou(a, empty) == 0
    assert iou(empty, empty) == 1


@pytest.mark.parametrize('iou', [mask_iou, jax.jit(mask_iou)], ids=['numpy', 'jit'])
def test_only_pixels_of_the_area_count(iou):
    a = np.array([[1, 1, 0], [0, 1, 0]], bool)
    b = np.array([[1, 0, 1], [0, 1, 0]], bool)
    assert iou(a, b, np.ones((2, 3), bool)) == 0.5
    assert iou(a, b, np.array([[0, 0, 0], [1, 1, 1]], bool)) == 1
    assert iou(a, b, np.array([[0, 1, 1], [0, 0, 0]], bool)) == 0
    assert iou(a, b, np.zeros((2, 3), bool)) == 1  # both are empty there


def test_leading_axes_broadcast():
    masks_NMHW = np.zeros((2, 3, 1, 4), bool)
    masks_NMHW[0, 0, 0, :2] = masks_NMHW[0, 1, 0, :1] = masks_NMHW[1, 0, 0, 2:] = masks_NMHW[1, 2, 0, 3:] = True
    truth_NHW = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 1]]], bool)
    np.testing.assert_allclose(mask_iou(masks_NMHW, truth_NHW[:, None]), [[1, 0.5, 0], [0.5, 0, 1]])
    assert mask_area(masks_NMHW).tolist() == [[2, 1, 0], [2, 0, 1]]


def test_jax_and_numpy_agree():
    rng = np.random.default_rng(0)
    a, b, area = (rng.random((5, 7, 9, 11)) < rng.random((5, 7, 1, 1)) ** 2 for _ in range(3))
    on_device = jax.jit(mask_iou)(a, b, area)
    assert isinstance(on_device, jax.Array)
    assert on_device.dtype == jnp.float32
    expected = mask_iou(a, b, area)
    assert expected.dtype == np.float64
    np.testing.assert_allclose(on_device, expected, rtol=1e-6)
    np.testing.assert_array_equal(mask_area(jnp.asarray(a)), mask_area(a))
