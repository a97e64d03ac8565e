"""Holes and islands of masks, against segment-anything's function, which labels the full image with OpenCV."""

import numpy as np
import pytest

from samjax.masks.regions import clean, remove_small_regions
from samjax.parity import meta

amg = meta.package().utils.amg
MODES = ('holes', 'islands')


def same_as_the_original(mask_HW, area):
    before_HW = mask_HW.copy()
    for mode in MODES:
        actual_HW, changed = remove_small_regions(mask_HW, area, mode)
        expected_HW, expected_changed = amg.remove_small_regions(mask_HW, area, mode)
        assert actual_HW.dtype == bool
        np.testing.assert_array_equal(actual_HW, expected_HW)
        assert changed is expected_changed
        assert changed or actual_HW is mask_HW
        np.testing.assert_array_equal(mask_HW, before_HW)


def mask_of(*lines):
    return np.array([[pixel == '#' for pixel in line] for line in lines])


def test_holes_worked_example():
    mask_HW = mask_of(
        '.......',
        '.####..',
        '.#.##..',
        '.##.#..',
        '.####.#',
    )
    filled_HW = mask_of(
        '.......',
        '.####..',
        '.####..',
        '.####..',
        '.####.#',
    )
    actual_HW, changed = remove_small_regions(mask_HW, 3, 'holes')  # 2 px that share a corner
    assert changed is True
    np.testing.assert_array_equal(actual_HW, filled_HW)
    assert remove_small_regions(mask_HW, 2, 'holes') == (mask_HW, False)
    assert remove_small_regions(filled_HW, 18, 'holes') == (filled_HW, False)  # all that is outside
    actual_HW, changed = remove_small_regions(filled_HW, 19, 'holes')
    assert changed is True
    assert actual_HW.all()


def test_islands_worked_example():
    mask_HW = mask_of(
        '##..#',
        '#..#.',
        '....#',
        '#....',
    )
    for area, expected_HW in (
        (1, mask_HW),
        (2, mask_of('##..#', '#..#.', '....#', '.....')),
        (3, mask_of('##..#', '#..#.', '....#', '.....')),
        (9, mask_of('##...', '#....', '.....', '.....')),
    ):
        actual_HW, changed = remove_small_regions(mask_HW, area, 'islands')
        np.testing.assert_array_equal(actual_HW, expected_HW)
        assert changed is (area > 1)


def test_of_equal_islands_the_one_further_left_in_the_first_two_rows_stays():
    """It begins a row lower here, but OpenCV scans two rows at once."""
    mask_HW = mask_of(
        '...#.',
        '#....',
    )
    actual_HW, _ = remove_small_regions(mask_HW, 5, 'islands')
    np.testing.assert_array_equal(actual_HW, mask_of('.....', '#....'))
    same_as_the_original(mask_HW, 5)
    for top in range(4):  # which rows are a pair depends on the image, not on the window
        for left in range(4):
            moved_HW = np.zeros((9, 12), bool)
            moved_HW[top : top + 2, left : left + 5] = mask_HW
            same_as_the_original(moved_HW, 5)


def test_masks_without_pixels_or_background():
    for shape in ((1, 1), (1, 6), (6, 1), (4, 5)):
        for value in (False, True):
            for area in (0, 1, 6, 20, 21):
                same_as_the_original(np.full(shape, value), area)


@pytest.mark.parametrize('seed', range(5))
def test_random_masks_are_cleaned_as_by_the_original(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        height, width = rng.integers(1, 65, 2)
        mask_HW = np.zeros((height, width), bool)
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        left, right = np.sort(rng.integers(0, width + 1, 2))
        box = rng.choice([np.s_[:, :], np.s_[top:bottom, left:right], np.s_[top:bottom, :], np.s_[:, left:right]])
        part_hw = mask_HW[tuple(box)]
        part_hw[:] = rng.random(part_hw.shape) < rng.choice([0.03, 0.2, 0.5, 0.65, 0.9])
        for area in (0, 1, 2, 3.5, 10, 100, rng.integers(1, height * width + 2)):
            same_as_the_original(mask_HW, area)


@pytest.mark.parametrize('quarter_turns', range(4))
def test_stripes_and_frames_at_borders_are_cleaned_as_by_the_original(quarter_turns):
    """Background on one side of the mask or on two, which are apart only if the mask reaches across the image."""
    masks = []
    for top, bottom in ((0, 1), (0, 5), (3, 5), (9, 11), (10, 11), (0, 11)):
        for left, right in ((0, 13), (0, 12), (1, 13), (1, 12), (4, 6)):
            mask_HW = np.zeros((11, 13), bool)
            mask_HW[top:bottom, left:right] = True
            hollow_HW = mask_HW.copy()
            hollow_HW[top + 1 : bottom - 1, left + 1 : right - 1] = False
            gap_HW = mask_HW.copy()
            gap_HW[:, (left + right) // 2] = False
            masks += [mask_HW, hollow_HW, gap_HW]
    masks.append(np.eye(11, 13, dtype=bool))
    masks.append(np.indices((11, 13)).sum(0) % 4 == 0)
    for mask_HW in masks:
        for area in (*range(1, 145, 3), 26, 39, 78):
            same_as_the_original(np.rot90(mask_HW, quarter_turns), area)


def test_clean_fills_before_it_removes():
    """A ring of 8 px, which with its hole has 9, and a single pixel."""
    mask_HW = mask_of(
        '###..',
        '#.#..',
        '###.#',
        '.....',
        '.....',
    )
    square_HW = mask_of('###..', '###..', '###..', '.....', '.....')
    for drop in (False, True):
        actual_HW, changed = clean(mask_HW, 9, drop)
        np.testing.assert_array_equal(actual_HW, square_HW)
        assert changed is True
        assert clean(square_HW, 9, drop) == (square_HW, False)
        assert clean(mask_HW, 1, drop) == (mask_HW, False)
    actual_HW, changed = clean(mask_HW, 10, False)
    np.testing.assert_array_equal(actual_HW, square_HW)
    assert changed is True
    assert clean(mask_HW, 10, True) == (None, True)


def test_clean_drops_what_has_no_large_island():
    scattered_HW = np.zeros((9, 9), bool)
    scattered_HW[::2, ::2] = True  # 25 px in all
    assert clean(scattered_HW, 2, True) == (None, True)
    assert clean(scattered_HW, 1, True) == (scattered_HW, False)
    empty_HW = np.zeros((9, 9), bool)
    assert clean(empty_HW, 1, True) == (None, True)
    assert clean(empty_HW, 1, False) == (empty_HW, False)
    assert clean(empty_HW, 0, True) == (empty_HW, False)
