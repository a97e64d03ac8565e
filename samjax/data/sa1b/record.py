"""One image and its JSON, checked, as the record that is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.sa1b.files import Pair

EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')


class Unusable(Exception):
    """Why an image cannot be used: `cause` is counted, `detail` is for the one who mends it."""

    def __init__(self, cause: str, detail: str):
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


def make_record(pair: Pair) -> dict:
    """The record of one pair.

    Returns image (encoded bytes as found), name, height and width in px, and annotations: a list of
    size (height, width), counts (compressed RLE), area in px as counted from the RLE, and the scores
    predicted_iou and stability_score, which are 1 where the JSON has none, as for masks by people.
    Raises Unusable, whatever the bytes are.
    """
    if not pair.images:
        raise Unusable('no image', 'the JSON has no JPEG or PNG of the same name beside it')
    if not pair.jsons:
        raise Unusable('no JSON', 'the image has no JSON of the same name beside it')
    if len(pair.images) + len(pair.jsons) > 2:
        raise Unusable('duplicate name', 'several images or JSON files share this name')
    image = _read(pair.images[0], 'unreadable image')
    height, width = _image_size(image)
    text = _read(pair.jsons[0], 'invalid JSON')
    return {
        'image': image,
        'name': pair.name,
        'height': height,
        'width': width,
        'annotations': read_annotations(text, height, width),
    }


def _read(part, cause: str) -> bytes:
    try:
        data = part.read()
    except OSError as error:
        raise Unusable(cause, str(error)) from error
    if len(data) < part.size:
        raise Unusable(cause, f'only {len(data)} of {part.size} bytes are there')
    return data


def _image_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image that decodes to its last pixel."""
    try:
        with Image.open(io.BytesIO(data), formats=('JPEG', 'PNG')) as image:
            image.load()
    except Exception as error:  # PIL raises nearly anything on damaged files
        raise Unusable('unreadable image', str(error)) from error
    if image.mode not in EIGHT_BIT:
        raise Unusable('unreadable image', f'pixels of type {image.mode}, not 8 bits per channel')
    return image.height, image.width


def read_annotations(text: bytes, height: int, width: int) -> list[dict]:
    """The annotations of a JSON in the layout of SA-1B; raises Unusable if one of them is wrong."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable('invalid JSON', str(error)) from error
    stated = tuple(_field(content, 'image', side, kind=int) for side in ('height', 'width'))
    if stated != (height, width):
        detail = f'the JSON says {stated[0]} x {stated[1]}, the image has {height} x {width} px'
        raise Unusable('wrong size', detail)
    found = _field(content, 'annotations', kind=list)
    return [_annotation(one, f'mask {n}', height, width) for n, one in enumerate(found)]


def _annotation(content, which: str, height: int, width: int) -> dict:
    size = _field(content, 'segmentation', 'size', kind=list, which=which)
    counts = _field(content, 'segmentation', 'counts', kind=(str, list), which=which)
    if size != [height, width]:
        detail = f'the size of {which} is {size}, the image has [{height}, {width}] px'
        raise Unusable('wrong size', detail)
    try:
        if isinstance(counts, str):
            counts = counts.encode('ascii')
            runs = run_lengths(counts)
        else:
            runs = np.array(counts, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError('the runs do not add up to the image')
        if not isinstance(counts, bytes):
            uncompressed = {'size': size, 'counts': counts}
            counts = coco.frPyObjects(uncompressed, height, width)['counts']
    except (ValueError, TypeError, OverflowError) as error:
        raise Unusable('damaged RLE', f'{which}: {error}') from error
    return {
        'size': size,
        'counts': counts,
        'area': int(runs[1::2].sum()),
        'predicted_iou': _score(content, 'predicted_iou', which),
        'stability_score': _score(content, 'stability_score', which),
    }


def _score(content: Mapping, key: str, which: str) -> float:
    return float(_field(content, key, kind=(int, float), which=which)) if key in content else 1.0


def _field(content, *keys: str, kind, which: str = 'the JSON'):
    for depth, key in enumerate(keys, 1):
        if not isinstance(content, Mapping) or key not in content:
            raise Unusable('missing key', f'{which} has no {".".join(keys[:depth])}')
        content = content[key]
    if not isinstance(content, kind) or isinstance(content, bool):
        raise Unusable('missing key', f'{".".join(keys)} of {which} is {str(content)[:20]!r}')
    return content


def run_lengths(counts: bytes) -> np.ndarray:
    """Lengths in px of the runs of 0, 1, 0, .. that compressed RLE counts stand for.

    The COCO code: 5 bits per character, lowest first, +32 if more follow, sign in the last bit; from
    the fourth run on a number is the difference to the run before the last.  pycocotools decodes
    damaged counts without a word and leaves chance values in the mask, hence a reader of our own.
    Raises ValueError for characters or numbers that the code cannot produce.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError('the counts hold characters that are not RLE, or end too early')
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        raise ValueError('the counts hold a number too large for any image')
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
