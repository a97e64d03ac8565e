"""Run lengths read, checked and resized without a mask at full size, against pycocotools and plain arithmetic."""

import numpy as np
import pytest
from pycocotools import mask as coco

from samjax.masks.rle import (
    GridWindow,
    as_text,
    covered_window,
    encode,
    encode_labels,
    pixel_coverage,
    run_lengths,
    runs_of_crop,
    segments,
)


def test_encoded_mask_is_read_by_pycocotools():
    mask_HW = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]], bool)
    encoded = encode(mask_HW)
    np.testing.assert_array_equal(coco.decode(encoded), mask_HW)
    assert as_text(encoded) == {'size': [3, 4], 'counts': encoded['counts'].decode()}


@pytest.mark.parametrize(('top', 'left'), [(0, 0), (2, 1), (4, 0), (1, 3)])
def test_runs_of_a_crop_are_those_of_the_whole_mask(top, left):
    rng = np.random.default_rng(0)
    for density in (0.0, 0.4, 1.0):
        mask_HW = np.zeros((7, 6), bool)
        mask_HW[top : top + 3, left : left + 3] = rng.random((3, 3)) < density
        runs = runs_of_crop(mask_HW[top : top + 3, left : left + 3], top, left, (7, 6))
        assert runs == run_lengths(encode(mask_HW)['counts']).tolist()


def test_run_lengths_worked_example():
    mask_HW = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]], np.uint8, order='F')
    # column by column: 0 0 1 | 1 1 1 | 1 0 0 | 0 0 1
    assert run_lengths(coco.encode(mask_HW)['counts']).tolist() == [2, 5, 4, 1]


def test_run_lengths_of_random_masks_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 1.0):
        mask_HW = np.asfortranarray((rng.random((300, 411)) < density).astype(np.uint8))
        runs = run_lengths(coco.encode(mask_HW)['counts'])
        decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(411, 300).T
        np.testing.assert_array_equal(decoded, mask_HW)


@pytest.mark.parametrize(
    'runs',
    [
        [2**24 + 1, 2**24 - 1, 2**24 + 3],  # float32 has no such integers
        [0, 2**31 - 1],
        [1, 2**31 - 3, 1],
        [2**30 - 1, 2**30, 1, 2**24 + 1, 3],  # from the fourth run on, differences of either sign
        [5, 2**24 + 1, 7, 2**25 + 3, 2**25 + 1, 1],
    ],
)
def test_run_lengths_of_images_up_to_2_to_the_31_px(runs):
    counts = coco.frPyObjects({'size': [1, sum(runs)], 'counts': runs}, 1, sum(runs))['counts']
    found = run_lengths(counts)
    assert found.tolist() == runs
    assert np.issubdtype(found.dtype, np.integer)


def test_large_image_is_resized_exactly():
    """Of 5000 x 4000 px everything but the first row: in a grid of 5 x 4 each cell has 10^6 px, the upper 999,000."""
    height, width, grid = 5000, 4000, (5, 4)
    runs = np.array([1, height - 1] * width)
    mask = segments(runs, height)
    assert covered_window(mask, (height, width), grid) == (0, 0, 5, 4)
    covered_hw = pixel_coverage(mask, (height, width), grid, GridWindow(0, 0, 5, 4)).T
    whole = height * width
    expected_hw = np.full(grid, whole)
    expected_hw[0] = whole // 1000 * 999
    np.testing.assert_array_equal(covered_hw, expected_hw)


def test_largest_image_is_resized_exactly():
    """46,340 x 46,340 px, just below 2^31: the left half, and a single pixel in the last corner."""
    side = 46_340
    runs = np.array([0, side * side // 2, side * side // 2 - 1, 1])
    mask = segments(runs, side)
    assert covered_window(mask, (side, side), (2, 4)) == (0, 0, 2, 4)
    covered_hw = pixel_coverage(mask, (side, side), (2, 4), GridWindow(0, 0, 2, 4)).T
    np.testing.assert_array_equal(covered_hw, [[side**2, side**2, 0, 0], [side**2, side**2, 0, 8]])


def test_run_lengths_finds_most_damage():
    rng = np.random.default_rng(0)
    mask_HW = np.asfortranarray((rng.random((60, 50)) < 0.1).astype(np.uint8))
    counts = coco.encode(mask_HW)['counts']
    missed = 0
    for _ in range(200):
        damaged = bytearray(counts)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            runs = run_lengths(bytes(damaged))
        except ValueError:
            continue
        missed += (runs >= 0).all() and runs.sum() == 3000
    assert missed < 20


def test_segments_are_cut_at_the_foot_of_a_column():
    mask = segments(np.array([2, 5, 4, 1]), 3)  # 0 0 1 | 1 1 1 | 1 0 0 | 0 0 1
    assert [x.tolist() for x in mask] == [[0, 1, 2, 3], [2, 0, 0, 2], [3, 3, 1, 3]]


def overlaps(n, length):
    """(n, length): overlap of pixel q of n and pixel p of `length`, where a line has n * length."""
    q, p = np.ogrid[:n, :length]
    return np.maximum(np.minimum((q + 1) * length, (p + 1) * n) - np.maximum(q * length, p * n), 0)


def test_pixel_coverage_worked_example():
    """4 x 6 px become 2 x 3: each pixel is a block of 2 x 2, of which a covered pixel is a quarter of 24."""
    mask_HW = np.array(
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 1, 1],
        ],
        np.uint8,
    )
    mask = segments(run_lengths(coco.encode(np.asfortranarray(mask_HW))['counts']), 4)
    assert covered_window(mask, (4, 6), (2, 3)) == (0, 0, 2, 3)
    assert pixel_coverage(mask, (4, 6), (2, 3), GridWindow(0, 0, 2, 3)).T.tolist() == [[24, 6, 0], [0, 0, 18]]
    assert pixel_coverage(mask, (4, 6), (2, 3), GridWindow(1, 1, 2, 3)).T.tolist() == [[0, 18]]


def test_pixel_coverage_of_any_mask_and_grid_are_exact():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, grid = tuple(rng.integers(1, 30, 2).tolist()), tuple(rng.integers(1, 60, 2).tolist())
        mask_HW = (rng.random(size) < rng.choice([0.03, 0.5, 1.0])).astype(np.uint8)
        mask_HW[tuple(rng.integers(size))] = 1
        mask = segments(run_lengths(coco.encode(np.asfortranarray(mask_HW))['counts']), size[0])
        expected_hw = overlaps(grid[0], size[0]) @ mask_HW.astype(int) @ overlaps(grid[1], size[1]).T
        window = covered_window(mask, size, grid)
        actual_hw = np.zeros(grid)
        actual_hw[window.top : window.bottom, window.left : window.right] = pixel_coverage(mask, size, grid, window).T
        np.testing.assert_array_equal(actual_hw, expected_hw)
        top, left = (int(rng.integers(side)) for side in grid)
        part = GridWindow(top, left, int(rng.integers(top, grid[0])) + 1, int(rng.integers(left, grid[1])) + 1)
        np.testing.assert_array_equal(
            pixel_coverage(mask, size, grid, part).T, expected_hw[part.top : part.bottom, part.left : part.right]
        )


def test_encode_labels_worked_example():
    labels_HW = np.array([[0, 7, 7], [2, 2, 7]])
    rles = encode_labels(labels_HW)
    assert list(rles) == [2, 7]
    assert coco.decode(rles[2]).tolist() == [[0, 0, 0], [1, 1, 0]]
    assert coco.decode(rles[7]).tolist() == [[0, 1, 1], [0, 0, 1]]
    assert list(encode_labels(labels_HW, ignore=(2, 7))) == [0]


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (13, 8)])
def test_encode_labels_are_the_bytes_of_pycocotools(shape):
    rng = np.random.default_rng(0)
    for kind in (np.uint8, np.int64, np.uint16):
        labels_HW = np.sort(rng.integers(0, 5, shape), 0).astype(kind)
        rles = encode_labels(labels_HW, ignore=())
        assert list(rles) == sorted(set(labels_HW.ravel().tolist()))
        for label, rle in rles.items():
            assert rle == coco.encode(np.asfortranarray((labels_HW == label).astype(np.uint8)))
