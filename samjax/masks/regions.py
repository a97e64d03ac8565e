"""Removal of small holes and islands of a mask, as segment-anything does it, but in a window around the mask."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from samjax.masks.boxes import mask_box

EIGHT_CONNECTED = ndimage.generate_binary_structure(2, 2)  # pixels that share a corner are connected


def remove_small_regions(
    mask_HW: np.ndarray, area: float, mode: Literal['holes', 'islands']
) -> tuple[np.ndarray, bool]:
    """A bool mask without holes, or without islands, of less than `area` px; and whether it changed.

    holes: every small component of the background is filled, even at the border, or all of a small image.
    islands: every small component of the mask is removed; if all are small the largest stays.
    A mask that does not change is returned as it is, not as a copy.  Source: `remove_small_regions` of
    segment-anything's utils/amg.py.
    """
    return {'holes': _fill_holes, 'islands': _remove_islands}[mode](mask_HW, area)


def clean(mask_HW: np.ndarray, area: float, drop: bool) -> tuple[np.ndarray | None, bool]:
    """A bool mask with holes of less than `area` px filled and then such islands removed; and whether it changed.

    drop: a mask without an island of at least `area` px becomes None (appendix B of the paper), instead of its largest
    island.
    """
    mask_HW, filled = remove_small_regions(mask_HW, area, 'holes')
    mask_HW, removed = remove_small_regions(mask_HW, area, 'islands')
    if drop and np.count_nonzero(mask_HW) < area:  # what is left is all large, or the largest of the small
        return None, True
    return mask_HW, filled or removed


def _fill_holes(mask_HW, area):
    """Labels a window that is one pixel larger than the mask's box: there the background is connected as in the image.

    Outside of the window there is only background.  What lies above belongs to the component of the window's first row,
    which is background then, and so for each side: only its pixels are added to the size of that component.
    """
    height, width = mask_HW.shape
    top, bottom, left, right = _bounds(mask_HW)
    top, bottom, left, right = max(top - 1, 0), min(bottom + 1, height), max(left - 1, 0), min(right + 1, width)
    labels_hw, sizes_N = _connected_components(~mask_HW[top:bottom, left:right])
    outside = (
        (np.s_[:top, :], labels_hw[0, 0]),
        (np.s_[bottom:, :], labels_hw[-1, 0]),
        (np.s_[top:bottom, :left], labels_hw[0, 0]),
        (np.s_[top:bottom, right:], labels_hw[0, -1]),
    )
    for region, label in outside:
        sizes_N[label] += mask_HW[region].size
    small_N = sizes_N < area
    small_N[0] = False
    if not small_N.any():
        return mask_HW, False
    filled_HW = mask_HW.copy()
    filled_HW[top:bottom, left:right] |= small_N[labels_hw]
    for region, label in outside:
        filled_HW[region] = small_N[label]
    return filled_HW, True


def _remove_islands(mask_HW, area):
    """If all islands are small, the largest stays; of several largest ones, the first in the order of OpenCV.

    OpenCV scans two rows of the image at once, in blocks of 2 x 2 px: of two islands that begin in the same two rows,
    the one further left comes first, even if it begins in the lower one.
    """
    top, bottom, left, right = _bounds(mask_HW)
    labels_hw, sizes_N = _connected_components(mask_HW[top:bottom, left:right])
    kept_N = sizes_N >= area
    kept_N[0] = False
    if kept_N[1:].all():
        return mask_HW, False
    if not kept_N.any():
        largest_N = sizes_N == sizes_N[1:].max()
        largest_N[0] = False
        rows, columns = np.nonzero(largest_N[labels_hw])
        first = np.argmin((rows + top) // 2 * mask_HW.shape[1] + columns)
        kept_N[labels_hw[rows[first], columns[first]]] = True
    kept_HW = np.zeros_like(mask_HW)
    kept_HW[top:bottom, left:right] = kept_N[labels_hw]
    return kept_HW, True


def _bounds(mask_HW) -> tuple[int, int, int, int]:
    """The rows top .. bottom - 1 and columns left .. right - 1 that hold a mask; of an empty one the first pixel."""
    x0, y0, x1, y1 = mask_box(mask_HW).astype(int).tolist()
    return y0, y1 + 1, x0, x1 + 1


def _connected_components(mask_hw):
    """Label of each pixel, 0 outside of the mask, and pixels per label."""
    labels_hw, count = ndimage.label(mask_hw, EIGHT_CONNECTED)
    return labels_hw, np.bincount(labels_hw.ravel(), minlength=count + 1)
