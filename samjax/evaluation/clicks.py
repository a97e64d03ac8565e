"""Clicks of the evaluation: the deterministic user of arXiv 2304.02643, appendix D.1, in numpy.

The user clicks the pixel farthest from the edge of the object, then repeatedly the pixel farthest from the edge of
where the last prediction is wrong.  The random clicks of training are in `samjax.training.click_simulation`.
A click is ((x, y), label): integer pixel of the original image, and POSITIVE or NEGATIVE.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samjax.masks.boxes import mask_box
from samjax.structs import NEGATIVE, POSITIVE

Click = tuple[tuple[int, int], int]


def first_click(truth_HW: np.ndarray) -> Click:
    """The most interior pixel of a bool mask.  Raises ValueError if the mask has no pixel."""
    return next_click(truth_HW, np.zeros_like(truth_HW))


def random_click(truth_HW: np.ndarray, rng: np.random.Generator) -> Click:
    """A pixel of a bool mask, each equally likely.  Raises ValueError if the mask has no pixel."""
    _check(truth_HW)
    y, x = np.unravel_index(rng.choice(np.flatnonzero(truth_HW)), truth_HW.shape)
    return (int(x), int(y)), POSITIVE


def next_click(truth_HW: np.ndarray, predicted_HW: np.ndarray) -> Click:
    """The most interior pixel of the larger error; both masks are bool.

    "Larger" compares the largest distance to the edge in the false negatives with that in the false positives; if they
    are equal the click is negative.  Among equally interior pixels the first in row-major order wins.  Pixels outside
    the image are not errors, so errors also end at the border.  Without any error, see `_click_without_error`.
    Raises ValueError if `truth_HW` has no pixel.
    """
    _check(truth_HW)
    missed_2, missed_distance = _most_interior(truth_HW & ~predicted_HW)
    surplus_2, surplus_distance = _most_interior(predicted_HW & ~truth_HW)
    if missed_distance == surplus_distance == 0:
        return _click_without_error(truth_HW)
    if missed_distance > surplus_distance:
        return missed_2, POSITIVE
    return surplus_2, NEGATIVE


def _most_interior(region_HW: np.ndarray) -> tuple[tuple[int, int], float]:
    """((x, y), distance to the nearest pixel outside) of the most interior pixel; distance 0 if empty.

    Only the bounding box is searched, with a rim of a pixel.  This is exact: the nearest point of the rim is never
    farther from a pixel of the region than anything beyond it.
    """
    if not region_HW.any():
        return (0, 0), 0.0
    x0, y0, x1, y1 = mask_box(region_HW).astype(int).tolist()
    padded_HW = np.pad(region_HW[y0 : y1 + 1, x0 : x1 + 1], 1)
    distance_HW = ndimage.distance_transform_edt(padded_HW)
    y, x = np.unravel_index(distance_HW.argmax(), distance_HW.shape)
    return (int(x0 + x - 1), int(y0 + y - 1)), float(distance_HW[y, x])


def _click_without_error(truth_HW: np.ndarray) -> Click:
    """A negative click on the background pixel farthest from the object, else the first click again."""
    if truth_HW.all():
        return first_click(truth_HW)
    distance_HW = ndimage.distance_transform_edt(~truth_HW)
    y, x = np.unravel_index(distance_HW.argmax(), distance_HW.shape)
    return (int(x), int(y)), NEGATIVE


def _check(truth_HW: np.ndarray) -> None:
    if not truth_HW.any():
        raise ValueError('a mask without pixels cannot be clicked: leave empty objects out')
