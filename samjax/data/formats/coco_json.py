"""JSON files in COCO's form: reading them, their common fields, and segmentations as compressed RLE."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from samjax.errors import SamjaxError
from samjax.masks import rle

MAX_PIXELS = 2**31  # of an image; pycocotools counts them in 32 bits
MAX_OUTLINE = 4_000_000  # px; pycocotools takes 80 bytes for each, far more than any annotated outline has


def read(path: Path, remedy: str):
    """The content of a JSON file.

    remedy: ends the sentence of the error.

    Raises:
        SamjaxError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): {remedy}') from error
    except (ValueError, RecursionError) as error:
        raise SamjaxError(f'{path} is not valid JSON ({error}): {remedy}') from error


def wrong_form(content, lists: Collection[str]) -> str:
    """Why parsed JSON is not an object with these lists, such as 'has no list of images'; empty if it is."""
    if not isinstance(content, Mapping):
        return 'is not a JSON object'
    missing = [key for key in lists if not isinstance(content.get(key), list)]
    return f'has no list of {" and ".join(missing)}' if missing else ''


def integer(entry, key: str) -> int | None:
    """An integer field, None if the entry is no object, lacks it, or has something else there."""
    value = entry.get(key) if isinstance(entry, Mapping) else None
    return value if type(value) is int else None


def image_size(image) -> tuple[int, int] | None:
    """Height and width in px of an entry of `images`, None if it does not state a possible size."""
    height, width = integer(image, 'height'), integer(image, 'width')
    stated = height is not None and width is not None and height > 0 and width > 0
    return (height, width) if stated and height * width < MAX_PIXELS else None


def polygon(part, height: int, width: int) -> np.ndarray | None:
    """A polygon x, y, x, y, .. in px, None if `part` is not one.

    pycocotools steps along the outline, so corners far outside the image could take it unlimited time and memory;
    they are moved nearer, which changes no mask of a sensible polygon.
    """
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return None
    if not all(type(number) in (int, float) for number in part):
        return None
    try:
        corners_N2 = np.array(part, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        return None
    if not np.isfinite(corners_N2).all():
        return None
    sides_2 = np.array([width, height])
    corners_N2 = np.clip(corners_N2, -2 * sides_2, 3 * sides_2)
    outline = np.abs(corners_N2 - np.roll(corners_N2, 1, 0)).max(1).sum()
    return corners_N2.ravel() if outline <= MAX_OUTLINE else None


def polygons_to_rle(polygons: Collection, height: int, width: int) -> dict:
    """Compressed RLE of the union of polygons, each x, y, x, y, .. in px."""
    return coco.merge(coco.frPyObjects(polygons, height, width))


def checked_rle(size, counts, height: int, width: int) -> dict:
    """Compressed RLE with counts as bytes of an RLE whose counts are a list, str or bytes.

    Raises:
        ValueError, TypeError, OverflowError: it is not of this size, or its counts do not make such a mask.
    """
    if list(size) != [height, width]:
        raise ValueError(f'its size is {list(size)}, the image has [{height}, {width}] px')
    if isinstance(counts, list):
        runs = np.array(counts, np.int64)
    else:
        counts = counts.encode('ascii') if isinstance(counts, str) else counts
        runs = rle.run_lengths(counts)
    pixels = height * width
    if runs.ndim != 1 or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels:
        raise ValueError('its runs do not add up to the image')
    if isinstance(counts, list):
        counts = coco.frPyObjects({'size': [height, width], 'counts': counts}, height, width)['counts']
    return {'size': [height, width], 'counts': counts}
