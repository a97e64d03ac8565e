"""An image with its masks, checked, as the record that is stored."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as coco

from samjax.data.formats.causes import Causes
from samjax.data.formats.coco_json import checked_rle
from samjax.data.formats.dataset_index import Item
from samjax.images.encoded_image import STORED_FORMATS
from samjax.images.open import ImageOptions, OpenedImage, open_image, orientation_for

SCORES = ('predicted_iou', 'stability_score')
MAX_SCORE = float(np.finfo(np.float32).max)


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


class MadeRecord(NamedTuple):
    """A record, and what there is to say about it."""

    content: dict
    skipped_masks: Causes
    warnings: Causes
    read_as: Mapping[str, int]  # see `AnnotatedImage`
    is_scaled: bool  # whether the image has more than 8 bits per channel and was scaled


def make_record(item: Item, options: ImageOptions) -> MadeRecord:
    """The record of an item.

    A record has image (an encoded JPEG or PNG), name, height and width in px of the upright image, orientation (EXIF's
    1 .. 8: how the stored pixels are to be transformed), and annotations: a list of size (height, width), counts
    (compressed RLE), area in px as counted from the RLE, and the scores predicted_iou and stability_score, which are
    1 where the data set has none, as for manually annotated masks.

    Raises:
        InvalidExample: the image is invalid, whatever the bytes are.  A mask that is invalid is skipped.
    """
    annotated = item.load()
    opened = open_image(annotated.image, options)
    orientation = orientation_for(annotated.size, opened, annotated.as_stored)
    height, width = annotated.size
    annotations, skipped_masks, warnings = [], Causes(annotated.skipped_masks), Causes(annotated.warnings)
    for n, mask in enumerate(annotated.masks):
        scores = {name: mask.get(name, 1.0) for name in SCORES}
        if wrong := [name for name, score in scores.items() if not abs(score) <= MAX_SCORE]:
            warnings.add('score that is no number, stored as 1', f'{wrong[0]} of mask {n}')
            scores |= dict.fromkeys(wrong, 1.0)
        try:
            rle = checked_rle(mask['size'], mask['counts'], height, width)
            annotations.append({**scores, **rle, 'area': int(coco.area(rle))})
        except (ValueError, TypeError, OverflowError) as error:
            skipped_masks.add('damaged RLE', f'mask {n}: {error}')
    record = {
        'image': _stored(annotated.image, opened),
        'name': os.fsencode(item.name),  # may be any bytes
        'height': height,
        'width': width,
        'orientation': orientation,
        'annotations': annotations,
    }
    return MadeRecord(record, skipped_masks, warnings, annotated.read_as, opened.is_scaled)


def _stored(data: bytes, opened: OpenedImage) -> bytes:
    """The bytes of the file if it is a JPEG or PNG that every reader of records decodes alike, else a PNG."""
    if opened.image.format in STORED_FORMATS and not opened.is_scaled:
        return data
    file = io.BytesIO()
    opened.image.convert('RGB').save(file, 'PNG')
    return file.getvalue()
