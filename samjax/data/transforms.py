"""From an `Example` at original size to a row of a `Batch` in the frame of the model; numpy and PIL only.

Only the masks that are sampled are ever read: an image may have hundreds of objects.  Run lengths are converted
directly to packed rows of the frame.  The rule: a pixel of the frame belongs to an object if at least half of its area
does.  The paper does not say how it resizes masks.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.example import Example
from samjax.errors import SamjaxError, check_option
from samjax.images.encoded_image import EncodedImage, apply_symmetry
from samjax.masks.rle import GridWindow, covered_window, pixel_coverage, run_lengths, segments

FLIPS = {'none': 1, 'horizontal': 2, 'any': 8}  # how many of the eight symmetries of a square are sampled from


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What training draws of an example.

    Raises:
        SamjaxError: a value is not possible.
    """

    frame: tuple[int, int]  # height and width in px of the model input
    max_objects: int  # masks sampled per image
    max_area_fraction: float  # of the image, above which a mask is not sampled; from 1 on there is no limit
    flip: str  # a row of `FLIPS`
    scale_jitter: tuple[float, float]  # minimum and maximum size of the image relative to the one that fits the frame;
    # (0.1, 2) is the large-scale jitter of Copy-Paste (arXiv 2012.07177); a larger image is cropped at random

    def __post_init__(self):
        check_option('data.max_objects', self.max_objects, lambda n: n >= 1, 'at least 1')
        check_option('data.max_area_fraction', self.max_area_fraction, lambda x: x > 0, 'more than 0; 1.0 is no limit')
        if self.flip not in FLIPS:
            raise SamjaxError(f'data.flip {self.flip!r} is not known: set it to one of {", ".join(FLIPS)}')
        check_option(
            'data.scale_jitter',
            self.scale_jitter,
            lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf,
            '(minimum, maximum) size: (1.0, 1.0) is none, (0.1, 2.0) is usual',
        )


class View(NamedTuple):
    """How an image lies in the frame: resized, cropped, mirrored, and put into the top left corner."""

    grid: tuple[int, int]  # height and width in px that the whole image is resized to
    window: GridWindow  # the crop of it that is visible
    symmetry: int  # of the crop; see `apply_symmetry`


class SampledExample(NamedTuple):
    """An image and some of its masks in the frame; N is the number of objects per image, the last may be empty."""

    image_HW3: np.ndarray  # uint8 RGB; padding is 0
    packed_masks_NVW: np.ndarray  # uint8, 8 rows per byte (samjax.masks.packing)
    valid_N: np.ndarray  # bool, False for masks without pixels
    size_2: np.ndarray  # int32, (height, width) of the image inside the frame


def sample_example(
    example: Example,
    sampling: Sampling,
    rng: np.random.Generator,
) -> SampledExample:
    """An image and up to N = `sampling.max_objects` of its masks, sampled without replacement, in the frame.

    Empty masks are never sampled; one that vanishes in the frame is marked as not valid.
    """
    frame = sampling.frame
    symmetry = int(rng.integers(FLIPS[sampling.flip]))
    size = height, width = example.image.height, example.image.width
    area_N = np.array([coco.area(rle) for rle in example.rles])  # fails on lists of over 255 RLEs
    candidates = np.flatnonzero((area_N > 0) & (area_N <= sampling.max_area_fraction * height * width))
    sampled = rng.permutation(candidates)[: sampling.max_objects]
    view = random_view(size, frame, symmetry, sampling.scale_jitter, rng)
    image_HW3, size_2 = view_image(example.image, view, frame)
    masks_NVW = np.zeros((sampling.max_objects, -(-frame[0] // 8), frame[1]), np.uint8)
    for mask_VW, i in zip(masks_NVW, sampled, strict=False):
        view_mask(example.rles[i], view, mask_VW)
    return SampledExample(image_HW3, masks_NVW, masks_NVW.any((1, 2)), np.array(size_2, np.int32))


def never_sampled(rle: dict, size: tuple[int, int], sampling: Sampling) -> str | None:
    """Why training never sees this mask of an image of `size` (height, width), None if it can: a cause, to be counted.

    A mask vanishes if no pixel of the frame is half covered, neither at the largest nor at the smallest scale.
    """
    area = int(coco.area(rle))
    if area == 0:
        return 'have no pixels'
    if area > sampling.max_area_fraction * size[0] * size[1]:
        return f'cover more than {100 * sampling.max_area_fraction:.4g} % of the image (data.max_area_fraction)'
    axes = {sampling.frame, sampling.frame[::-1]} if FLIPS[sampling.flip] > 4 else {sampling.frame}
    grids = {
        frame_size(*size, tuple(scale * side for side in frame)) for scale in sampling.scale_jitter for frame in axes
    }
    if any(_appears(rle, area, size, grid) for grid in grids):
        return None
    height, width = sampling.frame
    return f'vanish when resized to {height} x {width} px (model.image_size)'


def _appears(rle: dict, area: int, size: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Whether a mask covers at least half of a pixel of the grid that the image is resized to.

    Most masks need not be resized: each pixel that is enlarged 1.5 times covers .75 * .75 of a pixel of the grid, and
    of a mask that fills half of its box a pixel is at least as full as the average.
    """
    (H, W), (h, w) = size, grid
    if 2 * h >= 3 * H and 2 * w >= 3 * W:
        return True
    left, top, width, height = (int(side) for side in coco.toBbox(rle))
    rows = ((top + height) * h - 1) // H + 1 - top * h // H
    columns = ((left + width) * w - 1) // W + 1 - left * w // W
    if 2 * area * h * w >= H * W * rows * columns:
        return True
    mask = segments(run_lengths(rle['counts']), H)
    return bool((2 * pixel_coverage(mask, size, grid, covered_window(mask, size, grid)) >= H * W).any())


def random_view(
    size: tuple[int, int],
    frame: tuple[int, int],
    symmetry: int,
    scale_jitter: tuple[float, float],
    rng: np.random.Generator,
) -> View:
    """A view of an image of `size` (height, width) in px at a random scale; cropped at random to fit the frame."""
    axes = slice(None, None, -1 if symmetry & 4 else 1)  # of the frame before the symmetry is applied
    scale = rng.uniform(*scale_jitter)
    grid = frame_size(*size, tuple(scale * side for side in frame[axes]))
    crop = [min(*sides) for sides in zip(grid, frame[axes], strict=True)]
    top, left = (int(rng.integers(g - c + 1)) for g, c in zip(grid, crop, strict=True))
    return View(grid, GridWindow(top, left, top + crop[0], left + crop[1]), symmetry)


def frame_size(height: int, width: int, frame: tuple[float, float]) -> tuple[int, int]:
    """Height and width in px of an image in the frame, whose longer side (relative to the frame) fills it.

    Rounds half up and to at least 1 px.  Source: ResizeLongestSide of Segment Anything.
    """
    scale = min(frame[0] / height, frame[1] / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def view_image(image: EncodedImage, view: View, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The uint8 view in the top left corner of the frame, 0 elsewhere, and its (height, width) there.

    JPEG is decoded at a reduced scale where that is still enough.
    """
    pixels_HW3 = image.at_least(*view.grid)
    visible_HW3 = apply_symmetry(_resized(pixels_HW3, view.grid, view.window), view.symmetry)
    height, width, _ = visible_HW3.shape
    framed_HW3 = np.zeros((*frame, 3), np.uint8)
    framed_HW3[:height, :width] = visible_HW3
    return framed_HW3, (height, width)


def frame_image(image_HW3: np.ndarray, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The whole uint8 image in the top left corner of the frame, 0 elsewhere, and its (height, width) there."""
    new_h, new_w = frame_size(*image_HW3.shape[:2], frame)
    framed_HW3 = np.zeros((*frame, 3), np.uint8)
    framed_HW3[:new_h, :new_w] = _resized(image_HW3, (new_h, new_w), GridWindow(0, 0, new_h, new_w))
    return framed_HW3, (new_h, new_w)


def _resized(image_HW3: np.ndarray, grid: tuple[int, int], window: GridWindow) -> np.ndarray:
    """A window of an image resized to the grid.

    PIL's bilinear filter, which smooths when it shrinks, as for the training of the released weights.
    """
    down, right = image_HW3.shape[0] / grid[0], image_HW3.shape[1] / grid[1]
    box = window.left * right, window.top * down, window.right * right, window.bottom * down
    size = window.right - window.left, window.bottom - window.top
    image = Image.fromarray(np.ascontiguousarray(image_HW3))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))


def view_mask(rle: dict, view: View, into_VW: np.ndarray) -> None:
    """Writes the visible part of a mask that is not empty into `into_VW`: zeros, in rows packed by `pack_rows`."""
    size, window = tuple(rle['size']), view.window
    mask = segments(run_lengths(rle['counts']), size[0])
    covered = covered_window(mask, size, view.grid)
    top, left = max(covered.top, window.top), max(covered.left, window.left)
    bottom, right = min(covered.bottom, window.bottom), min(covered.right, window.right)
    if top >= bottom or left >= right:
        return
    visible_WH = 2 * pixel_coverage(mask, size, view.grid, GridWindow(top, left, bottom, right)) >= size[0] * size[1]
    if view.symmetry & 1:
        visible_WH, left = visible_WH[::-1], window.left + window.right - right
    if view.symmetry & 2:
        visible_WH, top = visible_WH[:, ::-1], window.top + window.bottom - bottom
    top, left = top - window.top, left - window.left
    if view.symmetry & 4:
        visible_WH, top, left = visible_WH.T, left, top
    above = np.zeros((len(visible_WH), top % 8), bool)
    packed_WV = np.packbits(np.concatenate([above, visible_WH], 1), axis=1, bitorder='little')
    into_VW[top // 8 :][: packed_WV.shape[1], left : left + len(packed_WV)] = packed_WV.T
