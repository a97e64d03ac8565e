"""JSON in COCO's form for every reader: the file, ids, flags, numbers, sizes, and segmentations as compressed RLE.

Programs write numbers as integers, as floats (3.0) and as text ('3'); these are the same here.
"""

from __future__ import annotations

import json
import numbers
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from samjax.data.formats.file_names import storable
from samjax.errors import InvalidExample, SamjaxError, one_line
from samjax.masks import rle

MAX_PIXELS = 2**31  # of an image; pycocotools counts them in 32 bits
MAX_OUTLINE = 4_000_000  # px; pycocotools takes 80 bytes for each, far more than any annotated outline has
INTEGER = re.compile(r'[+-]?[0-9]{1,18}(\.0*)?')
FLAGS = {'0': False, '1': True, 'false': False, 'true': True}


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


def is_panoptic(annotations: list) -> bool:
    return any(isinstance(annotation, Mapping) and 'segments_info' in annotation for annotation in annotations)


# ---- fields ----------------------------------------------------------------------------------------


def identifier(value) -> int | str | None:
    """An id: an integer, also one written as 1.0, '1', '1.0' or '0001', or else a text; None if it is neither.

    All that refers to images, annotations, categories and segments by id goes through this, so that 1 and '1' match.
    """
    if type(value) is int:
        return value
    if isinstance(value, str):
        text = storable(value.strip())  # half a character could not be printed
        return int(text.partition('.')[0]) if INTEGER.fullmatch(text) else text or None
    return _integral(value)


def integer(entry, key: str) -> int | None:
    """An integer field, also one written as 6.0 or '6'; None if the entry is no object, lacks it, or has another."""
    value = identifier(entry.get(key)) if isinstance(entry, dict) else None
    return None if isinstance(value, str) else value


def number(value) -> float | None:
    """A finite number, also one written as text; None if it is none."""
    if type(value) not in (int, float) and (isinstance(value, bool) or not isinstance(value, (numbers.Real, str))):
        return None
    try:
        value = float(value)
    except (ValueError, OverflowError):  # JSON has integers of any length
        return None
    return value if abs(value) < 1e30 else None


def flag(value) -> bool | None:
    """Whether a field such as `iscrowd` is set: 0, 1, false, true, also as text, or null for false; None if unclear."""
    if value is None:
        return False
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else None


def image_size(image) -> tuple[int, int] | None:
    """Height and width in px of an entry of `images`, None if it does not state a possible size."""
    height, width = integer(image, 'height'), integer(image, 'width')
    stated = height is not None and width is not None and height > 0 and width > 0
    return (height, width) if stated and height * width < MAX_PIXELS else None


def label(annotation_id, position: int) -> str:
    """An annotation in messages, by its `id` if it has one, else by its position in the list."""
    annotation_id = identifier(annotation_id)
    return f'annotations[{position}]' if annotation_id is None else f'annotation {annotation_id}'


def _integral(value) -> int | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if value == value // 1 and abs(value) < 1e18 else None


# ---- masks -----------------------------------------------------------------------------------------


class SegmentationMask(NamedTuple):
    """A segmentation as a mask, and what was changed in it."""

    rle: dict  # compressed, counts as bytes
    area: int  # px
    warnings: tuple[tuple[str, str], ...]  # causes and details


def read_segmentation(segmentation, height: int, width: int) -> SegmentationMask:
    """The mask of polygons, or of an RLE, in an image of this size.

    Raises:
        InvalidExample: there is none ('no mask'), all polygons are invalid ('invalid polygon'), or the RLE is
            ('damaged RLE').
    """
    if isinstance(segmentation, dict) and segmentation:
        size, counts = segmentation.get('size'), segmentation.get('counts')
        if not isinstance(size, (list, tuple)) or not isinstance(counts, (str, bytes, list)):
            raise InvalidExample('no mask', 'its RLE has no size or no counts')
        try:
            mask = checked_rle(size, counts, height, width)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidExample('damaged RLE', one_line(error)) from error
        return SegmentationMask(mask, int(coco.area(mask)), ())
    if not isinstance(segmentation, list) or not segmentation:
        raise InvalidExample('no mask', f'its segmentation is {reprlib.repr(segmentation)}')
    if type(segmentation[0]) in (int, float) and not any(isinstance(part, list) for part in segmentation):
        raise InvalidExample('invalid polygon', 'its segmentation is a list of numbers, not a list of such lists')
    polygons, problems = [], []
    is_cut = False
    for part in segmentation:
        try:
            corners, cut = polygon(part, height, width)
        except ValueError as error:
            problems.append(str(error))
        else:
            polygons.append(corners)
            is_cut |= cut
    if not polygons:
        raise InvalidExample('invalid polygon', problems[0])
    warnings = [('polygon left out of a mask', problem) for problem in problems]
    warnings += [('polygon far outside its image, which was cut', '')] * is_cut
    mask = polygons_to_rle(polygons, height, width)
    return SegmentationMask(mask, int(coco.area(mask)), tuple(warnings))


def polygons_to_rle(polygons: Collection, height: int, width: int) -> dict:
    """Compressed RLE of the union of polygons, each x, y, x, y, .. in px."""
    return coco.merge(coco.frPyObjects(polygons, height, width))


def checked_rle(size, counts, height: int, width: int) -> dict:
    """Compressed RLE with counts as bytes of an RLE whose counts are a list, str or bytes.

    Raises:
        ValueError, TypeError, OverflowError: it is not of this size, or its counts do not make such a mask.
    """
    if list(map(identifier, size)) != [height, width]:
        raise ValueError(f'its size is {reprlib.repr(list(size))}, the image has [{height}, {width}] px')
    if isinstance(counts, list):
        runs = _runs(counts)
    else:
        counts = counts.encode('ascii') if isinstance(counts, str) else counts
        runs = rle.run_lengths(counts)
    pixels = height * width
    if runs.ndim != 1 or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels:
        raise ValueError('its runs do not add up to the image')
    if isinstance(counts, list):
        counts = coco.frPyObjects({'size': [height, width], 'counts': runs.tolist()}, height, width)['counts']
    return {'size': [height, width], 'counts': counts}


def _runs(counts: list) -> np.ndarray:
    runs = np.array(counts)
    if runs.dtype.kind not in 'iu':  # numpy would cut fractions
        values = [identifier(count) for count in counts]
        if not all(isinstance(value, int) for value in values):
            raise ValueError('its counts are not integers')
        runs = np.array(values, np.int64)
    return runs.astype(np.int64)


def polygon(part, height: int, width: int) -> tuple[np.ndarray, bool]:
    """A polygon x, y, x, y, .. in px, and whether it was cut.  Raises ValueError if `part` is not one.

    pycocotools steps along the outline, so corners far outside the image could take it unlimited time and memory;
    they are moved nearer, which changes no mask of a sensible polygon.
    """
    if not isinstance(part, list):
        raise ValueError(f'a polygon is {reprlib.repr(part)}, not a list of numbers')
    if len(part) < 6 or len(part) % 2:
        raise ValueError(f'a polygon has {len(part)} numbers, not three or more pairs')
    if not set(map(type, part)) <= {int, float, str}:
        raise ValueError('a polygon has what is no number')
    try:
        corners_N2 = np.array(part, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError('a polygon has a number that is too large') from None
    except ValueError:
        raise ValueError('a polygon has what is no number') from None
    side = min(height, width)
    if corners_N2.min() >= -2 * side and corners_N2.max() <= 3 * side and 5 * side * len(corners_N2) <= MAX_OUTLINE:
        return corners_N2.ravel(), False
    if not np.isfinite(corners_N2).all():
        raise ValueError('a polygon has a number that is not finite')
    sides_2 = np.array([width, height])
    near_N2 = np.clip(corners_N2, -2 * sides_2, 3 * sides_2)
    outline = np.abs(near_N2 - np.roll(near_N2, 1, 0)).max(1).sum()
    if outline > MAX_OUTLINE:
        raise ValueError(f'the outline of a polygon is longer than {MAX_OUTLINE} px')
    return near_N2.ravel(), not np.array_equal(near_N2, corners_N2)
