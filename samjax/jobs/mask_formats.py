"""Files of an image and its masks; each file appears whole, so that an interrupted process leaves none cut off.

- sa1b: NAME.jpg or .png beside NAME.json, as in SA-1B
- coco: images/NAME.jpg or .png, and instances.json when all images are done
- png: images/NAME.jpg or .png, and masks/NAME/0.png, 1.png, .. (0 and 255) with metadata.csv, as segment-anything's
  scripts/amg.py writes them
- overlay: NAME.png, the image under its masks

A record is what `AutomaticMaskGenerator.generate` returns for a mask, with compressed RLE.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from samjax.jobs.image_collection import LoadedImage
from samjax.jobs.output_folder import OutputFolder
from samjax.storage import atomic

IDS_PER_IMAGE = 100_000  # masks of an image that get unique ids
FILES_PER_FOLDER = 1000  # of annotations that wait for instances.json
COLUMNS = (
    'id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,'
    'crop_box_x0,crop_box_y0,crop_box_w,crop_box_h'
)


def write(output_format: str, output: OutputFolder, index: int, image: LoadedImage, records: Sequence[dict]) -> str:
    """Writes an image, the one with this index in the collection, and its masks; returns the path of the image."""
    return FORMATS[output_format](output, index, image, records)


def _sa1b(output: OutputFolder, index: int, image: LoadedImage, records: Sequence[dict]) -> str:
    file = _write_image(output, image.name, image)
    height, width = image.image_HW3.shape[:2]
    entry = {'image_id': index + 1, 'width': width, 'height': height, 'file_name': os.path.basename(file)}
    annotations = [{'id': IDS_PER_IMAGE * index + n, **_annotation(record)} for n, record in enumerate(records, 1)]
    output.write_file(f'{image.name}.json', json.dumps({'image': entry, 'annotations': annotations}).encode())
    return file


def _coco(output: OutputFolder, index: int, image: LoadedImage, records: Sequence[dict]) -> str:
    file = _write_image(output, f'images/{image.name}', image)
    annotations = _annotations_file(output, index)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(annotations, json.dumps([_annotation(record) for record in records]))
    return file


def write_instances(output: OutputFolder, images: Sequence[dict | None]) -> None:
    """Writes instances.json of all images written as 'coco', each with file and size (H, W), None if it is invalid."""
    valid = [(index, image) for index, image in enumerate(images) if image is not None]
    entries = (
        {'id': index + 1, 'file_name': image['file'], 'height': image['size'][0], 'width': image['size'][1]}
        for index, image in valid
    )
    with output.replacing('instances.json') as temporary, open(temporary, 'w') as file:
        file.write('{"info": {"description": "automatic masks, by samjax"},\n"images": [')
        _write_list(file, entries)
        file.write('],\n"annotations": [')
        _write_list(file, _instances(output, [index for index, _ in valid]))
        file.write('],\n"categories": [{"id": 1, "name": "object"}]}\n')


def _instances(output: OutputFolder, indices: Sequence[int]) -> Iterator[dict]:
    annotation_id = 0
    for index in indices:
        for annotation in json.loads(_annotations_file(output, index).read_text()):
            annotation_id += 1
            yield {'id': annotation_id, 'image_id': index + 1, 'category_id': 1, 'iscrowd': 0, **annotation}


def _write_list(file, entries: Iterable[dict]) -> None:
    for n, entry in enumerate(entries):
        file.write(f'{"," if n else ""}\n{json.dumps(entry)}')


def _annotations_file(output: OutputFolder, index: int) -> Path:
    return output.unfinished / 'annotations' / str(index // FILES_PER_FOLDER) / f'{index}.json'


def _png(output: OutputFolder, index: int, image: LoadedImage, records: Sequence[dict]) -> str:
    file = _write_image(output, f'images/{image.name}', image)
    files = {f'{n}.png': _as_png(255 * coco_mask.decode(record['segmentation'])) for n, record in enumerate(records)}
    rows = [COLUMNS, *(_row(n, record) for n, record in enumerate(records))]
    files['metadata.csv'] = ''.join(f'{row}\n' for row in rows).encode()
    output.write_folder(f'masks/{image.name}', files)
    return file


def _row(number: int, record: dict) -> str:
    scores = [record['predicted_iou'], record['stability_score']]
    row = [number, record['area'], *record['bbox'], *record['point_coords'][0], *scores, *record['crop_box']]
    return ','.join(map(str, row))


def _overlay(output: OutputFolder, index: int, image: LoadedImage, records: Sequence[dict]) -> str:
    drawn_HW3 = draw_masks(image.image_HW3, [record['segmentation'] for record in records])
    output.write_file(f'{image.name}.png', _as_png(drawn_HW3))
    return f'{image.name}.png'


FORMATS = {'sa1b': _sa1b, 'coco': _coco, 'png': _png, 'overlay': _overlay}


def draw_masks(image_HW3: np.ndarray, rles: Sequence[dict]) -> np.ndarray:
    """uint8 RGB with each mask in a colour and an outline of its own, smaller masks above larger ones."""
    from samjax.visualization.overlays import draw_mask  # takes a second

    drawn_HW3 = image_HW3.copy()
    for n, rle in enumerate(sorted(rles, key=coco_mask.area, reverse=True)):
        x, y, width, height = coco_mask.toBbox(rle).astype(int)
        window = slice(y, y + height), slice(x, x + width)
        draw_mask(drawn_HW3[window], image_HW3[window], coco_mask.decode(rle)[window].astype(bool), n)
    return drawn_HW3


def _annotation(record: dict) -> dict:
    """As in SA-1B, whose boxes are those of pycocotools: as wide as the mask has columns."""
    scores = {key: record[key] for key in ('predicted_iou', 'stability_score', 'point_coords', 'crop_box')}
    box = coco_mask.toBbox(record['segmentation']).tolist()
    return {'segmentation': record['segmentation'], 'area': record['area'], 'bbox': box, **scores}


def _write_image(output: OutputFolder, name: str, image: LoadedImage) -> str:
    """Writes the file as it is if everyone sees the same in it, else a PNG; returns its path."""
    file = f'{name}{image.suffix if image.as_stored else ".png"}'
    output.write_file(file, image.data if image.as_stored else _as_png(image.image_HW3))
    return file


def _as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()
