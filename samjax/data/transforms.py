"""From an `Example` at original size to a row of a `Batch` in the frame of the model; numpy and PIL only.

Only the masks that are sampled are ever read: an image may have hundreds of objects.  Run lengths are converted
directly to packed rows of the frame.  The rule: a pixel of the frame belongs to an object if at least half of its area
does.  The paper does not say how it resizes masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.example import Example
from samjax.images.encoded_image import EncodedImage, apply_symmetry
from samjax.masks.rle import GridWindow, covered_window, pixel_coverage, run_lengths, segments

FLIPS = {'none': 1, 'horizontal': 2, 'any': 8}  # how many of the eight symmetries of a square are sampled from


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
    frame: tuple[int, int],
    max_objects: int,
    max_area_fraction: float,
    flip: str,
    scale_jitter: tuple[float, float],
    rng: np.random.Generator,
) -> SampledExample:
    """An image and up to N = `max_objects` of its masks, sampled without replacement, in the frame.

    frame: (height, width) in px; max_area_fraction: of the image, above which a mask is not sampled; flip: a row of
    `FLIPS`; scale_jitter: minimum and maximum size of the image relative to the one that fits the frame; (0.1, 2) is
    the large-scale jitter of Copy-Paste (arXiv 2012.07177), an image larger than the frame is cropped at random.
    Empty masks are never sampled; one that vanishes in the frame is marked as not valid.
    """
    symmetry = int(rng.integers(FLIPS[flip]))
    size = height, width = example.image.height, example.image.width
    area_N = np.array([coco.area(rle) for rle in example.rles])  # fails on lists of over 255 RLEs
    candidates = np.flatnonzero((area_N > 0) & (area_N <= max_area_fraction * height * width))
    sampled = rng.permutation(candidates)[:max_objects]
    view = random_view(size, frame, symmetry, scale_jitter, rng)
    image_HW3, size_2 = view_image(example.image, view, frame)
    masks_NVW = np.zeros((max_objects, -(-frame[0] // 8), frame[1]), np.uint8)
    for mask_VW, i in zip(masks_NVW, sampled, strict=False):
        view_mask(example.rles[i], view, mask_VW)
    return SampledExample(image_HW3, masks_NVW, masks_NVW.any((1, 2)), np.array(size_2, np.int32))


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
