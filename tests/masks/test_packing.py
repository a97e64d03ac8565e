"""Eight rows in a byte and back."""

import jax
import numpy as np
import pytest

from samjax.masks.packing import pack_rows, to_dense, to_sparse, unpack_rows


def test_worked_example():
    mask_HW = np.zeros((10, 2), bool)
    mask_HW[0, 0] = mask_HW[3, 0] = mask_HW[7, 1] = mask_HW[9, 1] = True
    assert pack_rows(mask_HW).tolist() == [[1 + 8, 128], [0, 2]]
    np.testing.assert_array_equal(unpack_rows(pack_rows(mask_HW), 10), mask_HW)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (1, 7), (4, 16), (0, 8), (1,)])
def test_sparse_and_dense_again(shape):
    packed = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    packed[packed < 200] = 0
    sparse = to_sparse(packed)
    np.testing.assert_array_equal(to_dense(sparse), packed)
    assert (sparse.words != 0).all()


def test_masks_that_are_small_are_sent_short():
    packed_NVW = np.zeros((64, 128, 1024), np.uint8)
    packed_NVW[:, 10:20, 100:200] = 255
    assert sum(part.nbytes for part in to_sparse(packed_NVW)[1:]) < packed_NVW.nbytes / 40


@pytest.mark.parametrize('shape', [(3, 4, 16, 5), (1, 1), (0, 8, 3), (7, 9)])
def test_there_and_back_inside_jit(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    back = jax.jit(lambda x: unpack_rows(x, shape[-2]))(pack_rows(masks))
    assert back.dtype == bool
    np.testing.assert_array_equal(back, masks)
