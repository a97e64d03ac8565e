"""An image with its masks, checked, as the record that is stored."""

from __future__ import annotations

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as coco

from samjax.data.formats.dataset_index import InvalidExample, Item
from samjax.images.encoded_image import SYMMETRY
from samjax.masks.rle import run_lengths

EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
STORED = ('JPEG', 'MPO', 'PNG')  # as they are, the others as PNG; MPO is what some cameras make of JPEG
ORIENTATION = 0x0112  # EXIF's tag


def features() -> tfds.features.FeaturesDict:
    """What a record holds."""
    annotation = {
        'size': tfds.features.Tensor(shape=(2,), dtype=np.int32),
        'counts': tfds.features.Text(),
        'area': np.int64,
        'predicted_iou': np.float32,
        'stability_score': np.float32,
    }
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'name': tfds.features.Text(),
            'height': np.int32,
            'width': np.int32,
            'orientation': np.int32,
            'annotations': tfds.features.Sequence(annotation),
        }
    )


def make_record(item: Item) -> tuple[dict, dict[str, int]]:
    """The record of an item, and how many of its masks are left out by cause.

    A record has image (an encoded JPEG or PNG), name, height and width in px as people see the image, orientation
    (EXIF's 1 .. 8: how the stored pixels are to be transformed), and annotations: a list of size (height, width), counts
    (compressed RLE), area in px as counted from the RLE, and the scores predicted_iou and stability_score, which are
    1 where there are none, as for masks by people.
    Raises InvalidExample, whatever the bytes are.
    """
    found = item.load()
    image, orientation = _checked_image(found.image, found.size, found.as_stored)
    height, width = found.size
    record = {
        'image': image,
        'name': item.name,
        'height': height,
        'width': width,
        'orientation': orientation,
        'annotations': [_annotation(mask, f'mask {n}', height, width) for n, mask in enumerate(found.masks)],
    }
    return record, dict(found.left_out)


def open_image(data: bytes) -> tuple[Image.Image, int]:
    """An image that decodes to its last pixel, and its orientation as EXIF states it, 1 if it does not.

    Raises InvalidExample if it is no whole image, or one that nobody but its owner knows how to show.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            stated = image.getexif().get(ORIENTATION)
    except Exception as error:  # PIL raises nearly anything on damaged files
        raise InvalidExample('unreadable image', str(error)) from error
    if image.mode not in EIGHT_BIT:
        detail = f'its pixels are of type {image.mode}: save it with 8 bits per channel, scaled as it should look'
        raise InvalidExample('not 8 bits', detail)
    return image, stated if stated in SYMMETRY else 1


def _checked_image(data: bytes, size: tuple[int, int], as_stored: bool) -> tuple[bytes, int]:
    """An image as JPEG or PNG, and its orientation: the one in which it has `size`.

    Cameras store images rotated and say so in EXIF; some annotation tools see that, others do not.
    """
    image, stated = open_image(data)
    orientation = 1 if as_stored else stated
    seen = image.size if SYMMETRY[orientation] & 4 else image.size[::-1]
    if size not in (seen, image.size[::-1]):
        detail = f'the masks are for {size[0]} x {size[1]}, the image has {seen[0]} x {seen[1]} px'
        raise InvalidExample('wrong size', detail)
    return data if image.format in STORED else _as_png(image), orientation if size == seen else 1


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert('RGB').save(file, 'PNG')
    return file.getvalue()


def _annotation(mask: dict, which: str, height: int, width: int) -> dict:
    size, counts = list(mask['size']), mask['counts']
    if size != [height, width]:
        raise InvalidExample('wrong size', f'the size of {which} is {size}, the image has [{height}, {width}] px')
    try:
        if isinstance(counts, list):
            runs = np.array(counts, np.int64)
        else:
            counts = counts.encode('ascii') if isinstance(counts, str) else counts
            runs = run_lengths(counts)
        if runs.ndim != 1 or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
            raise ValueError('the runs do not add up to the image')
        if isinstance(counts, list):
            counts = coco.frPyObjects({'size': size, 'counts': counts}, height, width)['counts']
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidExample('damaged RLE', f'{which}: {error}') from error
    scores = {'predicted_iou': 1.0, 'stability_score': 1.0, **mask}
    return {**scores, 'size': size, 'counts': counts, 'area': int(runs[1::2].sum())}
