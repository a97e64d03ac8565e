"""Small valid files of every kind that samjax reads, and their readers, for `damage`."""

from __future__ import annotations

import base64
import csv
import functools
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
import tfds_sets
from damage import Reader, Reading
from PIL import Image
from pycocotools import mask as coco
from samples import add, content, encoded, random_image, smooth
from samples import mask as rectangle

from samjax.checkpoints import run
from samjax.convert import convert, files, weights
from samjax.data.formats import tfds as tfds_format
from samjax.data.formats.detect import open_index
from samjax.data.records import record
from samjax.data.records.prepare import prepare
from samjax.data.records.source import open_records
from samjax.errors import InvalidExample, printable
from samjax.evaluation.metrics import boundaries
from samjax.evaluation.metrics.average_precision import read_boxes, read_ground_truth
from samjax.images.encoded_image import EncodedImage
from samjax.images.open import ImageOptions, read_image
from samjax.inference.predictor import Embedding
from samjax.jobs import embeddings
from samjax.jobs.image_collection import find_images
from samjax.model.config import SIZES

HEIGHT, WIDTH = 12, 20
A = rectangle(1, 2, 5, 9, HEIGHT, WIDTH)
B = rectangle(6, 0, 12, 20, HEIGHT, WIDTH)
IMAGE = random_image(0, HEIGHT, WIDTH)
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


# ---- data sets -------------------------------------------------------------------------------------


class Items(NamedTuple):
    """A data set as `samjax data check` and training read it, without the files that they write."""

    examples: list  # name, shape and bytes of the image, bytes of each mask
    counted: list[str]
    num_masks: int  # read or counted as skipped, of valid images
    num_invalid: int  # images


def read_items(path: Path | str) -> Items:
    examples, counted, num_masks, num_invalid = [], [], 0, 0
    features = record.features()
    for shard in open_index(str(path)).shards:
        for item in shard.items():
            location = printable(item.location)
            try:
                made = record.make_record(item, ImageOptions())
            except InvalidExample as error:
                counted.append(f'{error.cause}: {location}: {error.detail}')
                num_invalid += 1
                continue
            features.serialize_example(made.content)
            os.fsencode(item.name)
            counted += [*made.skipped_masks.lines(), *made.warnings.lines()]
            masks = made.content['annotations']
            pixels_HW3 = EncodedImage.from_bytes(made.content['image'], made.content['orientation']).pixels()
            decoded = tuple(coco.decode(mask).tobytes() for mask in masks)
            examples.append((item.name, pixels_HW3.shape, pixels_HW3.tobytes(), decoded))
            num_masks += len(masks) + sum(made.skipped_masks.counts.values())
            if not any(mask['area'] for mask in masks):
                counted.append(f'no masks: {location}')
    return Items(examples, counted, num_masks, num_invalid)


def read_pairs(folder: Path) -> Reading:
    """Of a folder or tar of images that are called x, y, ..: each is read or counted."""
    items = read_items(folder)
    counted = ' '.join(items.counted)
    names = [os.path.basename(name) for name, *_ in items.examples]
    missing = [name for name in 'xy' if name not in names and not re.search(rf'\b{name}\b', counted)]
    assert not missing or 'damaged tar' in counted, f'{missing} is neither read nor counted'
    return Reading(tuple(items.examples), tuple(items.counted))


def write_sa1b(folder: Path) -> Path:
    for name in 'xy':
        (folder / f'{name}.jpg').write_bytes(encoded(random_image(0, HEIGHT, WIDTH)))
        (folder / f'{name}.json').write_text(json.dumps(content([A, B], HEIGHT, WIDTH)))
    return folder / 'x.json'


def read_sa1b(folder: Path) -> Reading:
    """As `read_pairs`; each mask of a valid image is read or counted."""
    items = read_items(folder)
    if not items.num_invalid:
        expected = sum(len(json.loads(file.read_bytes())['annotations']) for file in folder.glob('*.json'))
        assert items.num_masks == expected, f'{items.num_masks} of {expected} masks are read or counted'
    return read_pairs(folder)


def write_sa1b_tar(folder: Path) -> Path:
    with tarfile.open(folder / 'sa_0.tar', 'w') as tar:
        for name in 'xyz':
            add(tar, f'{name}.jpg', encoded(random_image(0, HEIGHT, WIDTH)))
            add(tar, f'{name}.json', json.dumps(content([A, B], HEIGHT, WIDTH)).encode())
    return folder / 'sa_0.tar'


def coco_content() -> dict:
    """Polygon, RLE compressed and not, and a crowd, in two images; a third has none."""
    images = [{'id': n, 'file_name': f'{n}.png', 'height': HEIGHT, 'width': WIDTH} for n in (1, 2, 3)]
    compressed = coco.encode(A)
    rle = {'size': [HEIGHT, WIDTH], 'counts': compressed['counts'].decode()}
    runs = np.diff(np.flatnonzero(np.diff(A.ravel('F'), prepend=0, append=0)), prepend=0).tolist()
    uncompressed = {'size': [HEIGHT, WIDTH], 'counts': [*runs, HEIGHT * WIDTH - sum(runs)]}
    polygon = [[2, 1, 9, 1, 9, 5, 2, 5], [12.5, 1, 15, 1, 15, 5.25]]
    segmentations = [(1, rle, 0), (1, polygon, 0), (2, uncompressed, 0), (2, rle, 1)]
    annotations = [
        {'id': n, 'image_id': image, 'category_id': 7, 'segmentation': segmentation, 'area': 28.0,
         'bbox': [2, 1, 7, 4], 'iscrowd': crowd}
        for n, (image, segmentation, crowd) in enumerate(segmentations, 1)
    ]  # fmt: skip
    return {'images': images, 'annotations': annotations, 'categories': [{'id': 7, 'name': 'x'}]}


def write_coco(folder: Path) -> Path:
    for n in (1, 2, 3):
        random_image(n, HEIGHT, WIDTH).save(folder / f'{n}.png')
    (folder / 'instances.json').write_text(json.dumps(coco_content()))
    return folder / 'instances.json'


def read_coco(folder: Path) -> Reading:
    return read_json(folder / 'instances.json', lambda annotation: 1)


def read_json(path: Path, num_masks: Callable[[dict], int]) -> Reading:
    """Each image and, unless images are invalid, each mask of a JSON of COCO is read or counted.

    num_masks: of an annotation.
    """
    items = read_items(path)
    content = json.loads(path.read_bytes())
    assert len(items.examples) + items.num_invalid >= len(content['images']), 'an image is neither read nor counted'
    if not items.num_invalid:
        expected = sum(map(num_masks, content['annotations']))
        assert items.num_masks == expected, f'{items.num_masks} of {expected} masks are read or counted'
    return Reading(tuple(items.examples), tuple(items.counted))


def read_truth(folder: Path) -> Reading:
    truth = read_ground_truth(folder / 'instances.json')
    keys = 'image_id', 'category_id', 'area', 'iscrowd', 'ignore'
    facts = tuple(tuple(item[key] for key in keys) for item in truth.objects)
    masks = tuple(coco.decode(item['segmentation']).tobytes() for item in truth.objects)
    counted = (*truth.skipped.lines(), *truth.warnings.lines())
    num_annotations = len(json.loads((folder / 'instances.json').read_bytes())['annotations'])
    assert len(masks) + sum(truth.skipped.counts.values()) == num_annotations, (
        'an annotation is neither read nor counted'
    )
    return Reading((tuple(truth.images), tuple(truth.categories), facts, masks), counted)


def write_boxes(folder: Path) -> Path:
    (folder / 'instances.json').write_text(json.dumps(coco_content()))
    boxes = [{'image_id': n % 3 + 1, 'category_id': 7, 'bbox': [n, 1.5, 4, 3], 'score': 0.1 * n} for n in range(1, 5)]
    (folder / 'boxes.json').write_text(json.dumps(boxes))
    return folder / 'boxes.json'


def read_detections(folder: Path) -> Reading:
    boxes = read_boxes(folder / 'boxes.json', read_ground_truth(folder / 'instances.json'))
    images = tuple((key, *(array.tobytes() for array in of_image)) for key, of_image in boxes.images.items())
    return Reading(images, (f'clipped {boxes.clipped}, dropped {boxes.dropped}',))


def write_panoptic(folder: Path) -> Path:
    (folder / 'panoptic').mkdir()
    ids_HW = 300 * A.astype(np.int32) + 70_000 * B.astype(np.int32)
    rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 256**2], -1).astype(np.uint8)
    for name in 'xy':
        random_image(0, HEIGHT, WIDTH).save(folder / f'{name}.jpg')
        Image.fromarray(rgb_HW3).save(folder / 'panoptic' / f'{name}.png')
    images = [{'id': n, 'file_name': f'{"xy"[n]}.jpg', 'height': HEIGHT, 'width': WIDTH} for n in (0, 1)]
    segments = [{'id': id, 'category_id': 1, 'iscrowd': 0, 'area': 9, 'bbox': [0, 0, 1, 1]} for id in (300, 70_000)]
    annotations = [{'image_id': n, 'file_name': f'{"xy"[n]}.png', 'segments_info': segments} for n in (0, 1)]
    categories = [{'id': 1, 'name': 'x', 'isthing': 1}]
    text = json.dumps({'images': images, 'annotations': annotations, 'categories': categories})
    (folder / 'panoptic.json').write_text(text)
    return folder / 'panoptic.json'


def write_panoptic_png(folder: Path) -> Path:
    write_panoptic(folder)
    return folder / 'panoptic/x.png'


def read_panoptic(folder: Path) -> Reading:
    return read_json(folder / 'panoptic.json', lambda annotation: len(annotation.get('segments_info', [None])))


def write_labelme(folder: Path) -> Path:
    mask = base64.b64encode(encoded(Image.fromarray(255 * A[1:5, 2:9]), '.png')).decode()
    shapes = [
        {'label': 'x', 'points': [[2, 1], [8, 4]], 'shape_type': 'mask', 'mask': mask, 'group_id': None},
        {'label': 'x', 'points': [[1.5, 1], [15, 2], [8, 11]], 'shape_type': 'polygon', 'group_id': 1},
        {'label': 'x', 'points': [[10, 3], [13, 9]], 'shape_type': 'rectangle', 'group_id': 1},
        {'label': 'x', 'points': [[5, 5], [7, 9]], 'shape_type': 'circle', 'group_id': 2},
    ]
    for name in 'xy':
        random_image(0, HEIGHT, WIDTH).save(folder / f'{name}.png')
        content = {'version': '5.5.0', 'flags': {}, 'shapes': shapes, 'imagePath': f'{name}.png'}
        content |= {'imageData': None, 'imageHeight': HEIGHT, 'imageWidth': WIDTH}
        (folder / f'{name}.json').write_text(json.dumps(content))
    return folder / 'x.json'


def write_mask(suffix: str, binary: bool = False, **options) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / 'images').mkdir()
        (folder / 'masks').mkdir()
        labels_HW = 255 * np.maximum(A, rectangle(6, 0, 12, 8, HEIGHT, WIDTH)) if binary else A + 2 * B
        for name in 'xy':
            random_image(0, HEIGHT, WIDTH).save(folder / f'images/{name}.png')
            Image.fromarray(labels_HW).save(folder / f'masks/{name}{suffix}', **options)
        return folder / f'masks/x{suffix}'

    return write


def write_table(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for image in 'xy':
            random_image(0, HEIGHT, WIDTH).save(folder / f'{image}.png')
            Image.fromarray(A + 2 * B).save(folder / f'{image}_gt.png')
        rows = [{'file_name': f'{x}.png', 'mask_file_name': f'{x}_gt.png', 'text': 'a "b", c'} for x in 'xy']
        with open(folder / name, 'w', newline='') as file:
            if name.endswith('.csv'):
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(f'{json.dumps(row)}\n' for row in rows)
        return folder / name

    return write


def read_table(name: str) -> Callable[[Path], Reading]:
    """Each row of the table is read or counted."""

    def read(folder: Path) -> Reading:
        items = read_items(folder)
        with open(folder / name, encoding='utf-8', errors='replace', newline='') as file:
            rows = [*csv.reader(file)][1:] if name.endswith('.csv') else [line for line in file if line.strip()]
        num_rows = sum(map(bool, rows))
        assert len(items.examples) + items.num_invalid == num_rows, f'{num_rows} rows are not all read or counted'
        return Reading(tuple(items.examples), tuple(items.counted))

    return read


# ---- prepared data sets ----------------------------------------------------------------------------


def write_prepared(pattern: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / 'source').mkdir()
        write_sa1b(folder / 'source')
        (folder / 'source/lonely.json').write_text('{}')
        index = open_index(str(folder / 'source'))
        prepare(index, 'source', folder / 'out', max_invalid_fraction=1.0, num_workers=1)
        [file] = (folder / 'out').rglob(pattern)
        return file

    return write


def read_prepared(folder: Path) -> Reading:
    source = open_records(folder / 'out', folder / 'cache', 1.0)
    examples = []
    for index in range(len(source)):
        example = source[index]
        masks = tuple(coco.decode(rle).tobytes() for rle in example.rles)
        examples.append((example.name, example.image.pixels().tobytes(), masks))
    return Reading((source.digest, tuple(examples)))


def read_collection(folder: Path) -> Reading:
    """As `samjax masks` and `samjax embed` read it."""
    return _collection(folder / 'out')


def _collection(path: Path) -> Reading:
    images, found, counted = find_images([str(path)]), [], []
    for index, name in enumerate(images.names):
        try:
            found.append((name, images[index].image_HW3.tobytes()))
        except InvalidExample as error:
            counted.append(f'{error.cause}: {printable(images.location(index))}: {error.detail}')
    return Reading(tuple(found), tuple(counted))


# ---- tensorflow-datasets ---------------------------------------------------------------------------


def write_tfds(pattern: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image, mask = (encoded(Image.fromarray(pixels), '.png') for pixels in (np.asarray(IMAGE), 2 - A))
        pet = {'image': image, 'label': 0, 'species': 0, 'file_name': 'x.jpg', 'segmentation_mask': mask}
        pet['head_bbox'] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('TFDS_DATA_DIR', str(folder))
            tfds_sets.prepare('oxford_iiit_pet', [[pet, pet]])
        [file] = folder.rglob(pattern)
        return file

    return write


def read_tfds(folder: Path) -> Reading:
    tfds_format._data_source.cache_clear()  # files that are open do not change
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder))
        items = read_items('tfds:oxford_iiit_pet')
    return Reading(tuple(items.examples), tuple(items.counted))


# ---- images ----------------------------------------------------------------------------------------


def write_image(suffix: str, mode: str = 'RGB', **options) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        smooth(HEIGHT, WIDTH).convert(mode).save(folder / f'x{suffix}', **options)
        return folder / f'x{suffix}'

    return write


def read_single(folder: Path) -> Reading:
    [file] = folder.iterdir()
    image_HW3 = read_image(file)
    return Reading((image_HW3.shape, image_HW3.tobytes()))


# ---- models ----------------------------------------------------------------------------------------

CONFIG = SIZES['test']
OUR_SHAPES = functools.lru_cache(weights.our_shapes)  # takes a second, and is the same for each file


@functools.cache
def arrays_of(layout) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ours = {path: rng.normal(0, 1, shape).astype(np.float32) for path, shape in OUR_SHAPES(CONFIG).items()}
    return weights.to_torch(layout, ours, CONFIG)


def write_pth(folder: Path) -> Path:
    files.write_pth(folder / 'sam.pth', arrays_of(weights.META))
    return folder / 'sam.pth'


def write_safetensors(folder: Path) -> Path:
    files.write_safetensors(folder / 'sam.safetensors', arrays_of(weights.META))
    return folder / 'sam.safetensors'


def write_index(folder: Path) -> Path:
    arrays = arrays_of(weights.HUGGING_FACE)
    names = sorted(arrays)
    parts = {'model-1-of-2.safetensors': names[::2], 'model-2-of-2.safetensors': names[1::2]}
    for file, of_part in parts.items():
        files.write_safetensors(folder / file, {name: arrays[name] for name in of_part})
    weight_map = {name: file for file, of_part in parts.items() for name in of_part}
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': weight_map}))
    return index


def read_model(name: str = '') -> Callable[[Path], Reading]:
    def read(folder: Path) -> Reading:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, 'our_shapes', OUR_SHAPES)
            arrays, config, origin = convert.read_torch(folder / name, force=False)
        note = (origin,) if 'left' in origin else ()
        return Reading((config, {path: array.tobytes() for path, array in arrays.items()}), note)

    return read


def write_run(folder: Path) -> Path:
    from tiny import tiny_run_config

    run.write_config(str(folder), tiny_run_config())
    return folder / 'config.json'


def read_run(folder: Path) -> Reading:
    from samjax.model.config import from_options

    config = run.read_config(str(folder))
    return Reading((run.as_json(config), from_options(**config.model)))


def write_embedding(folder: Path) -> Path:
    embed_hwC = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    embeddings.write(folder / 'x.npz', Embedding(embed_hwC, (24, 40), (29, 48), (32, 48), 'digest'))
    return folder / 'x.npz'


def read_embedding(folder: Path) -> Reading:
    embedding = embeddings.read(folder / 'x.npz')
    fields = vars(embedding) if hasattr(embedding, '__dict__') else embedding._asdict()
    array = fields['embed_hwC']
    rest = tuple(str(value) for name, value in fields.items() if name != 'embed_hwC')
    return Reading((array.shape, array.tobytes(), rest))


def write_mat(compressed: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        cells = np.empty((1, 2), object)
        for n in range(2):
            cells[0, n] = {'Segmentation': (A + 2 * B).astype(np.uint16), 'Boundaries': (A if n else B).astype(bool)}
        scipy.io.savemat(folder / 'x.mat', {'groundTruth': cells}, do_compression=compressed)
        return folder / 'x.mat'

    return write


def read_mat(folder: Path) -> Reading:
    return Reading(tuple((truth.shape, truth.tobytes()) for truth in boundaries.read_ground_truth(folder / 'x.mat')))


READERS = {
    'SA-1B JSON': Reader(write_sa1b, read_sa1b),
    'SA-1B tar': Reader(write_sa1b_tar, read_pairs),
    'COCO instances': Reader(write_coco, read_coco),
    'COCO ground truth': Reader(write_coco, read_truth),
    'COCO panoptic': Reader(write_panoptic, read_panoptic),
    'COCO panoptic PNG': Reader(write_panoptic_png, read_panoptic, has_checksum=True),
    'COCO boxes': Reader(write_boxes, read_detections),
    'labelme': Reader(write_labelme, read_pairs),
    'mask PNG': Reader(write_mask('.png'), read_pairs, has_checksum=True),
    'mask TIFF': Reader(write_mask('.tif'), read_pairs),
    'mask TIFF, deflate': Reader(write_mask('.tif', compression='tiff_adobe_deflate'), read_pairs),
    'mask JPEG': Reader(write_mask('.jpg', True), read_pairs),
    'mask GIF': Reader(write_mask('.gif'), read_pairs),
    'mask BMP': Reader(write_mask('.bmp'), read_pairs),
    'metadata.csv': Reader(write_table('metadata.csv'), read_table('metadata.csv')),
    'metadata.jsonl': Reader(write_table('metadata.jsonl'), read_table('metadata.jsonl')),
    'ArrayRecord': Reader(write_prepared('*array_record*'), read_prepared),
    'report.json': Reader(write_prepared('report.json'), read_prepared),
    'dataset_info.json': Reader(write_prepared('dataset_info.json'), read_prepared),
    'features.json': Reader(write_prepared('features.json'), read_prepared),
    'ArrayRecord of TFDS': Reader(write_tfds('*array_record*'), read_tfds),
    'dataset_info.json of TFDS': Reader(write_tfds('dataset_info.json'), read_tfds),
    'features.json of TFDS': Reader(write_tfds('features.json'), read_tfds),
    'images.txt': Reader(write_prepared('images.txt'), read_collection, has_checksum=True),
    'JPEG': Reader(write_image('.jpg', exif=ORIENTED), read_single),
    'JPEG, progressive CMYK': Reader(write_image('.jpg', 'CMYK', progressive=True), read_single),
    'PNG': Reader(write_image('.png', exif=ORIENTED), read_single, has_checksum=True),
    'PNG, palette': Reader(write_image('.png', 'P'), read_single, has_checksum=True),
    'WebP': Reader(write_image('.webp'), read_single),
    'WebP, lossless': Reader(write_image('.webp', 'RGBA', lossless=True, exif=ORIENTED), read_single),
    'BMP': Reader(write_image('.bmp'), read_single),
    'TIFF': Reader(write_image('.tif'), read_single),
    'TIFF, LZW': Reader(write_image('.tif', compression='tiff_lzw'), read_single),
    'GIF': Reader(write_image('.gif'), read_single),
    '.npz': Reader(write_embedding, read_embedding, has_checksum=True),
    '.pth': Reader(write_pth, read_model('sam.pth'), has_checksum=True),
    '.safetensors': Reader(write_safetensors, read_model('sam.safetensors')),
    'index of safetensors': Reader(write_index, read_model()),
    'config.json of a run': Reader(write_run, read_run),
    '.mat': Reader(write_mat(False), read_mat),
    '.mat, compressed': Reader(write_mat(True), read_mat, has_checksum=True),
}
