"""From an `Example` at original size to one row of a `Batch` in the model frame; numpy and PIL only.

Only the masks that are sampled are ever read: a photograph may have hundreds of objects.  They go from run lengths
straight to packed rows of the frame.  The rule: a pixel of the frame belongs to an object if at least half of its area
does.  The paper does not say how it resizes masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.example import Example
from samjax.images.encoded_image import EncodedImage, apply_symmetry
from samjax.masks.rle import Window, bounds, run_lengths, segments, shares
from samjax.structs import Batch

FLIPS = {'none': 1, 'horizontal': 2, 'any': 8}  # how many of the eight symmetries of a square are drawn from


class View(NamedTuple):
    """How an image lies in the frame: resized, cropped, mirrored, and put into the top left corner."""

    grid: tuple[int, int]  # height and width in px that the whole image is resized to
    window: Window  # the part of it that is shown
    symmetry: int  # of the part; see `apply_symmetry`


def sample_example(
    example: Example,
    frame: tuple[int, int],
    max_objects: int,
    max_area: float,
    flip: str,
    jitter: tuple[float, float],
    rng: np.random.Generator,
) -> Batch:
    """One image and up to `max_objects` of its masks, drawn without replacement, in the frame.

    frame: (height, width) in px; max_area: share of the image above which a mask is left out; flip: a row of `FLIPS`;
    jitter: least and greatest size of the image relative to the one that fits the frame; (0.1, 2) is the large-scale
    jitter of Copy-Paste (arXiv 2012.07177), a larger image is cut at random.
    Returns a `Batch` without its B axis: image_HW3, masks_NVW, valid_N, size_2 with N = max_objects.
    Empty masks are never drawn; one that vanishes in the frame is marked as not valid.
    """
    symmetry = int(rng.integers(FLIPS[flip]))
    size = height, width = example.image.height, example.image.width
    area_N = np.array([coco.area(rle) for rle in example.rles])  # fails on lists of over 255 RLEs
    usable = np.flatnonzero((area_N > 0) & (area_N <= max_area * height * width))
    drawn = rng.permutation(usable)[:max_objects]
    view = random_view(size, frame, symmetry, jitter, rng)
    image_HW3, size_2 = view_image(example.image, view, frame)
    masks_NVW = np.zeros((max_objects, -(-frame[0] // 8), frame[1]), np.uint8)
    for mask_VW, i in zip(masks_NVW, drawn, strict=False):
        view_mask(example.rles[i], view, mask_VW)
    return Batch(image_HW3, masks_NVW, masks_NVW.any((1, 2)), np.array(size_2, np.int32))


def random_view(
    size: tuple[int, int],
    frame: tuple[int, int],
    symmetry: int,
    jitter: tuple[float, float],
    rng: np.random.Generator,
) -> View:
    """A view of an image of `size` (height, width) in px at a random scale, and of a random part if that is too big."""
    seen = slice(None, None, -1 if symmetry & 4 else 1)  # the frame as the image sees it before the symmetry
    zoom = rng.uniform(*jitter)
    grid = frame_size(*size, tuple(zoom * side for side in frame[seen]))
    shown = [min(*sides) for sides in zip(grid, frame[seen], strict=True)]
    top, left = (int(rng.integers(g - s + 1)) for g, s in zip(grid, shown, strict=True))
    return View(grid, Window(top, left, top + shown[0], left + shown[1]), symmetry)


def frame_size(height: int, width: int, frame: tuple[float, float]) -> tuple[int, int]:
    """Size in px that an image takes in the frame: its longer side (relative to the frame) fills it.

    Rounds half up and to at least 1 px.  Source: Segment Anything, resize to the longest side.
    """
    scale = min(frame[0] / height, frame[1] / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def view_image(photo: EncodedImage, view: View, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The uint8 view in the top left corner of the frame, 0 elsewhere, and its (height, width) there.

    JPEG is decoded at a reduced scale where that is still enough.
    """
    pixels_HW3 = photo.at_least(*view.grid)
    part = apply_symmetry(_resized(pixels_HW3, view.grid, view.window), view.symmetry)
    framed_HW3 = np.zeros((*frame, 3), np.uint8)
    framed_HW3[: part.shape[0], : part.shape[1]] = part
    return framed_HW3, part.shape[:2]


def frame_image(image_HW3: np.ndarray, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The whole uint8 image in the top left corner of the frame, 0 elsewhere, and its (height, width) there."""
    new_h, new_w = frame_size(*image_HW3.shape[:2], frame)
    framed_HW3 = np.zeros((*frame, 3), np.uint8)
    framed_HW3[:new_h, :new_w] = _resized(image_HW3, (new_h, new_w), Window(0, 0, new_h, new_w))
    return framed_HW3, (new_h, new_w)


def _resized(image_HW3: np.ndarray, grid: tuple[int, int], window: Window) -> np.ndarray:
    """A window of an image resized to the grid.

    PIL's bilinear filter, which smooths when it shrinks: what the released weights were trained on.
    """
    down, right = image_HW3.shape[0] / grid[0], image_HW3.shape[1] / grid[1]
    box = window.left * right, window.top * down, window.right * right, window.bottom * down
    size = window.right - window.left, window.bottom - window.top
    image = Image.fromarray(np.ascontiguousarray(image_HW3))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))


def view_mask(rle: dict, view: View, into_VW: np.ndarray) -> None:
    """Writes what a view shows of a mask that is not empty into packed rows (see `samjax.masks.packing`) that are all 0."""
    size, window = tuple(rle['size']), view.window
    mask = segments(run_lengths(rle['counts']), size[0])
    touched = bounds(mask, size, view.grid)
    top, left = max(touched.top, window.top), max(touched.left, window.left)
    bottom, right = min(touched.bottom, window.bottom), min(touched.right, window.right)
    if top >= bottom or left >= right:
        return
    seen_WH = 2 * shares(mask, size, view.grid, Window(top, left, bottom, right)) >= size[0] * size[1]
    if view.symmetry & 1:
        seen_WH, left = seen_WH[::-1], window.left + window.right - right
    if view.symmetry & 2:
        seen_WH, top = seen_WH[:, ::-1], window.top + window.bottom - bottom
    top, left = top - window.top, left - window.left
    if view.symmetry & 4:
        seen_WH, top, left = seen_WH.T, left, top
    above = np.zeros((len(seen_WH), top % 8), bool)
    packed_WV = np.packbits(np.concatenate([above, seen_WH], 1), axis=1, bitorder='little')
    into_VW[top // 8 :][: packed_WV.shape[1], left : left + len(packed_WV)] = packed_WV.T
