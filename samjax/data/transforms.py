"""From an `Example` at original size to one row of a `Batch` in the model frame; numpy and PIL only.

Only the masks that are sampled are ever decoded: a photograph may have hundreds of objects.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.structs import Batch, Example

FLIPS = {'none': 1, 'horizontal': 2, 'any': 8}  # how many of the eight symmetries of a square are drawn from


def sample_example(
    example: Example,
    frame: tuple[int, int],
    max_objects: int,
    max_area: float,
    flip: str,
    rng: np.random.Generator,
) -> Batch:
    """One image and up to `max_objects` of its masks, drawn without replacement, in the frame.

    frame: (height, width) in px; max_area: share of the image above which a mask is left out; flip: a row of `FLIPS`.
    Returns a `Batch` without its B axis: image_HW3, masks_NHW, valid_N, size_2 with N = max_objects.
    Empty masks are never drawn; one that vanishes in the smaller frame is marked as not valid.
    """
    symmetry = int(rng.integers(FLIPS[flip]))
    image_HW3, size_2 = frame_image(flipped(example.image_HW3, symmetry), frame)
    height, width = example.image_HW3.shape[:2]
    area_N = np.array([coco.area(rle) for rle in example.rles])  # fails on lists of over 255 RLEs
    usable = np.flatnonzero((area_N > 0) & (area_N <= max_area * height * width))
    masks_NHW = np.zeros((max_objects, *frame), bool)
    for n, i in enumerate(rng.permutation(usable)[:max_objects]):
        masks_NHW[n] = _frame_mask(flipped(coco.decode(example.rles[i]), symmetry), frame)
    return Batch(image_HW3, masks_NHW, masks_NHW.any((1, 2)), np.array(size_2, np.int32))


def flipped(x_HW: np.ndarray, symmetry: int) -> np.ndarray:
    """An image or mask (H, W, ...) as seen by symmetry 0 .. 7: the sum of 1 left-right, 2 up-down, 4 transposed."""
    x_HW = x_HW[:, ::-1] if symmetry & 1 else x_HW
    x_HW = x_HW[::-1] if symmetry & 2 else x_HW
    return x_HW.swapaxes(0, 1) if symmetry & 4 else x_HW


def frame_size(height: int, width: int, frame: tuple[int, int]) -> tuple[int, int]:
    """Size in px that an image takes in the frame: its longer side (relative to the frame) fills it.

    Rounds half up and to at least 1 px.  Source: Segment Anything, resize to the longest side.
    """
    scale = min(frame[0] / height, frame[1] / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def frame_image(image_HW3: np.ndarray, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The uint8 image in the top left corner of the frame, 0 elsewhere, and its (height, width) there.

    PIL's bilinear filter, which smooths when it shrinks: what the released weights were trained on.
    """
    new_h, new_w = frame_size(*image_HW3.shape[:2], frame)
    framed_HW3 = np.zeros((*frame, 3), np.uint8)
    resized = Image.fromarray(np.ascontiguousarray(image_HW3)).resize((new_w, new_h), Image.Resampling.BILINEAR)
    framed_HW3[:new_h, :new_w] = resized
    return framed_HW3, (new_h, new_w)


def frame_masks(masks_NHW: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Masks (0 or 1, any integer or bool type) in the frame: bool (N, frame height, frame width).

    Resized like the image: bilinear on 0 and 255, then > 127, so a pixel belongs to the object if at
    least half of it does; padding is False.  The paper does not say how it resizes masks.
    """
    framed_NHW = np.zeros((len(masks_NHW), *frame), bool)
    for n, mask_HW in enumerate(masks_NHW):
        framed_NHW[n] = _frame_mask(mask_HW, frame)
    return framed_NHW


def _frame_mask(mask_HW: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    new_h, new_w = frame_size(*mask_HW.shape, frame)
    grey = Image.fromarray(np.ascontiguousarray(mask_HW, np.uint8) * 255)
    framed_HW = np.zeros(frame, bool)
    resized = np.asarray(grey.resize((new_w, new_h), Image.Resampling.BILINEAR))
    framed_HW[:new_h, :new_w] = resized > 127
    return framed_HW
