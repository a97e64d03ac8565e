"""What is written of one image and its masks: whole or not at all, so that whoever is killed leaves nothing cut off.

- sa1b: NAME.jpg or .png beside NAME.json, as SA-1B has it
- coco: images/NAME.jpg or .png, and instances.json when all are done
- png: images/NAME.jpg or .png, and masks/NAME/0.png, 1.png, .. (0 and 255) with metadata.csv, as the original's
  scripts/amg.py writes them
- overlay: NAME.png, the image under its masks

A record is what `AutomaticMaskGenerator.generate` returns for a mask, with compressed RLE.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.jobs.image_collection import LoadedImage
from samjax.jobs.output_folder import OutputFolder

MOST = 100_000  # masks of an image that get ids of their own
PER_FOLDER = 1000  # pieces of instances.json
COLUMNS = (
    'id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,'
    'crop_box_x0,crop_box_y0,crop_box_w,crop_box_h'
)


def write(form: str, output: OutputFolder, place: int, loaded: LoadedImage, records: Sequence[dict]) -> str:
    """Writes an image and its masks, and returns the file of the image; place: its number, from 0."""
    return FORMATS[form](output, place, loaded, records)


def _sa1b(output: OutputFolder, place: int, loaded: LoadedImage, records: Sequence[dict]) -> str:
    file = _put_image(output, loaded.name, loaded)
    height, width = loaded.image_HW3.shape[:2]
    image = {'image_id': place + 1, 'width': width, 'height': height, 'file_name': os.path.basename(file)}
    annotations = [{'id': MOST * place + n, **_annotation(record)} for n, record in enumerate(records, 1)]
    output.put(f'{loaded.name}.json', json.dumps({'image': image, 'annotations': annotations}).encode())
    return file


def _coco(output: OutputFolder, place: int, loaded: LoadedImage, records: Sequence[dict]) -> str:
    file = _put_image(output, f'images/{loaded.name}', loaded)
    piece = _piece(output, place)
    piece.parent.mkdir(parents=True, exist_ok=True)
    with output.part() as part:
        part.write_text(json.dumps([_annotation(record) for record in records]))
        os.replace(part, piece)
    return file


def write_instances(output: OutputFolder, images: Sequence[dict | None]) -> None:
    """instances.json of all images written as 'coco'; an image has file and size (H, W), or is None if it was bad."""
    good = [(place, image) for place, image in enumerate(images) if image is not None]
    entries = (
        {'id': place + 1, 'file_name': image['file'], 'height': image['size'][0], 'width': image['size'][1]}
        for place, image in good
    )
    with output.part() as part:
        with open(part, 'w') as file:
            file.write('{"info": {"description": "masks of everything, by samjax"},\n"images": [')
            _write_list(file, entries)
            file.write('],\n"annotations": [')
            _write_list(file, _instances(output, [place for place, _ in good]))
            file.write('],\n"categories": [{"id": 1, "name": "object"}]}\n')
        os.replace(part, output.folder / 'instances.json')


def _instances(output: OutputFolder, places: Sequence[int]) -> Iterator[dict]:
    number = 0
    for place in places:
        for annotation in json.loads(_piece(output, place).read_text()):
            number += 1
            yield {'id': number, 'image_id': place + 1, 'category_id': 1, 'iscrowd': 0, **annotation}


def _write_list(file, entries: Iterator[dict]) -> None:
    for n, entry in enumerate(entries):
        file.write(f'{"," if n else ""}\n{json.dumps(entry)}')


def _piece(output: OutputFolder, place: int) -> Path:
    return output.unfinished / 'annotations' / str(place // PER_FOLDER) / f'{place}.json'


def _png(output: OutputFolder, place: int, loaded: LoadedImage, records: Sequence[dict]) -> str:
    file = _put_image(output, f'images/{loaded.name}', loaded)
    masks = {f'{n}.png': _as_png(255 * coco.decode(record['segmentation'])) for n, record in enumerate(records)}
    rows = [COLUMNS, *(_row(n, record) for n, record in enumerate(records))]
    output.put_folder(f'masks/{loaded.name}', {**masks, 'metadata.csv': ''.join(f'{row}\n' for row in rows).encode()})
    return file


def _row(number: int, record: dict) -> str:
    scores = [record['predicted_iou'], record['stability_score']]
    row = [number, record['area'], *record['bbox'], *record['point_coords'][0], *scores, *record['crop_box']]
    return ','.join(map(str, row))


def _overlay(output: OutputFolder, place: int, loaded: LoadedImage, records: Sequence[dict]) -> str:
    output.put(f'{loaded.name}.png', _as_png(draw(loaded.image_HW3, [record['segmentation'] for record in records])))
    return f'{loaded.name}.png'


FORMATS = {'sa1b': _sa1b, 'coco': _coco, 'png': _png, 'overlay': _overlay}


def draw(image_HW3: np.ndarray, rles: Sequence[dict]) -> np.ndarray:
    """uint8 RGB with each mask in a colour and an outline of its own; small ones lie on large ones."""
    from samjax.visualization.pictures import paint  # takes a second

    drawn_HW3 = image_HW3.copy()
    for n, rle in enumerate(sorted(rles, key=coco.area, reverse=True)):
        x, y, width, height = coco.toBbox(rle).astype(int)
        part = slice(y, y + height), slice(x, x + width)
        paint(drawn_HW3[part], image_HW3[part], coco.decode(rle)[part].astype(bool), n)
    return drawn_HW3


def _annotation(record: dict) -> dict:
    """As in SA-1B, where a box is the one that pycocotools finds: as wide as the mask has columns."""
    scores = {key: record[key] for key in ('predicted_iou', 'stability_score', 'point_coords', 'crop_box')}
    box = coco.toBbox(record['segmentation']).tolist()
    return {'segmentation': record['segmentation'], 'area': record['area'], 'bbox': box, **scores}


def _put_image(output: OutputFolder, name: str, loaded: LoadedImage) -> str:
    """The file as it is if everyone sees the same in it, else a PNG; returns its path."""
    file = f'{name}{loaded.suffix if loaded.as_stored else ".png"}'
    output.put(file, loaded.data if loaded.as_stored else _as_png(loaded.image_HW3))
    return file


def _as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()
