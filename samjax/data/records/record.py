"""An image with its masks, checked, as the record that is stored."""

from __future__ import annotations

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as coco

from samjax.data.formats.coco_json import checked_rle
from samjax.data.formats.dataset_index import Item
from samjax.errors import InvalidExample
from samjax.images.encoded_image import STORED_FORMATS, SYMMETRY
from samjax.images.open import open_image


def features() -> tfds.features.FeaturesDict:
    """The features of a record."""
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
    """The record of an item, and the number of its skipped masks by cause.

    A record has image (an encoded JPEG or PNG), name, height and width in px of the upright image, orientation (EXIF's
    1 .. 8: how the stored pixels are to be transformed), and annotations: a list of size (height, width), counts
    (compressed RLE), area in px as counted from the RLE, and the scores predicted_iou and stability_score, which are
    1 where the data set has none, as for manually annotated masks.

    Raises:
        InvalidExample: the image or a mask is invalid, whatever the bytes are.
    """
    annotated = item.load()
    image, orientation = _checked_image(annotated.image, annotated.size, annotated.as_stored)
    height, width = annotated.size
    record = {
        'image': image,
        'name': item.name,
        'height': height,
        'width': width,
        'orientation': orientation,
        'annotations': [_annotation(mask, f'mask {n}', height, width) for n, mask in enumerate(annotated.masks)],
    }
    return record, dict(annotated.skipped_masks)


def _checked_image(data: bytes, size: tuple[int, int], as_stored: bool) -> tuple[bytes, int]:
    """An image as JPEG or PNG, and the orientation in which it has `size`.

    Cameras store images rotated and state that in EXIF; some annotation tools respect it, others do not.
    """
    image, stated = open_image(data)
    orientation = 1 if as_stored else stated
    upright_size = image.size if SYMMETRY[orientation] & 4 else image.size[::-1]
    if size not in (upright_size, image.size[::-1]):
        actual = f'{upright_size[0]} x {upright_size[1]}'
        raise InvalidExample('wrong size', f'the masks are for {size[0]} x {size[1]}, the image has {actual} px')
    return data if image.format in STORED_FORMATS else _as_png(image), orientation if size == upright_size else 1


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert('RGB').save(file, 'PNG')
    return file.getvalue()


def _annotation(mask: dict, description: str, height: int, width: int) -> dict:
    size = list(mask['size'])
    if size != [height, width]:
        raise InvalidExample('wrong size', f'the size of {description} is {size}, the image has [{height}, {width}] px')
    try:
        rle = checked_rle(size, mask['counts'], height, width)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidExample('damaged RLE', f'{description}: {error}') from error
    scores = {'predicted_iou': 1.0, 'stability_score': 1.0, **mask}
    return {**scores, **rle, 'area': int(coco.area(rle))}
