"""Random images and masks, written in every layout that can express them, are read back equal through every reader."""

import base64
import csv
import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_sets
from PIL import Image, ImageOps
from pycocotools import mask as coco
from samples import add

from samjax.data.formats.detect import open_index
from samjax.data.records.prepare import PreparationReport, prepare
from samjax.data.records.source import open_records
from samjax.evaluation.metrics.average_precision import read_ground_truth
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.images.open import ImageOptions, read_image
from samjax.jobs.image_collection import find_images

SEEDS = range(4)
IMAGES_PER_SET = 15

# ---- random sets -----------------------------------------------------------------------------------


class Sample(NamedTuple):
    """An image with its masks."""

    name: str
    suffix: str
    file: bytes
    image_HW3: np.ndarray  # uint8, upright
    masks: list[np.ndarray]  # uint8 (H, W)

    @property
    def size(self):
        return self.image_HW3.shape[:2]


ORIENTATION = 0x0112
PNG = [('.png', mode, {}) for mode in ('RGB', 'L', 'P', 'LA', 'RGBA', '1')]
JPEG = [('.jpg', mode, {}) for mode in ('RGB', 'L', 'CMYK')] + [('.jpeg', 'RGB', {'progressive': True, 'quality': 60})]
OTHER = [
    *[('.webp', mode, {'lossless': True}) for mode in ('RGB', 'RGBA')],
    ('.webp', 'RGB', {'quality': 50}),
    *[('.bmp', mode, {}) for mode in ('RGB', 'L', 'P', '1')],
    *[('.tif', mode, {}) for mode in ('RGB', 'L', 'P', 'RGBA', 'CMYK', '1')],
    ('.tiff', 'RGB', {'compression': 'tiff_lzw'}),
    ('.tif', 'RGB', {'compression': 'tiff_adobe_deflate'}),
]
ROTATED = [(suffix, 'RGB', {'orientation': n}) for suffix in ('.jpg', '.png') for n in range(1, 9)]
OTHER_ROTATED = [(suffix, 'RGB', {'orientation': n}) for suffix in ('.webp', '.tif') for n in range(1, 9)]
STORED_KINDS = PNG + JPEG + ROTATED  # of SA-1B
ALL_KINDS = STORED_KINDS + OTHER + OTHER_ROTATED


def encode_image(rng, size, suffix, mode, options):
    height, width = size
    pixels = np.frombuffer(rng.randbytes(height * width * 4), np.uint8).reshape(height, width, 4)
    image = Image.fromarray(pixels, 'RGBA') if mode == 'RGBA' else Image.fromarray(pixels[..., :3]).convert(mode)
    options = dict(options)
    orientation = options.pop('orientation', None)
    if orientation and suffix == '.tif':
        options['tiffinfo'] = {ORIENTATION: orientation}
    elif orientation:
        options['exif'] = Image.Exif()
        options['exif'][ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


def random_set(seed, masks_of, kinds):
    """Images of all `kinds` in the sets of `SEEDS` together, of random sizes, each with what `masks_of` gives."""
    order = random.Random(repr(kinds)).sample(kinds, len(kinds))
    rng = random.Random(seed)
    samples = []
    for number in range(IMAGES_PER_SET):
        size = rng.randint(1, 30), rng.choice([1, rng.randint(2, 40)])
        size = size if rng.random() < 0.8 else size[::-1]
        suffix, mode, options = order[(seed * IMAGES_PER_SET + number) % len(kinds)]
        file = encode_image(rng, size, suffix, mode, options)
        with Image.open(io.BytesIO(file)) as image:
            image_HW3 = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
        masks = masks_of(rng, *image_HW3.shape[:2]) if number else [np.ones(image_HW3.shape[:2], np.uint8)]
        samples.append(Sample(f'{rng.choice("aäß")} {number}', suffix, file, image_HW3, masks))
    return samples


def box(rng, height, width):
    """Top, left, bottom, right of a rectangle of a pixel or more."""
    top, bottom = sorted(rng.sample(range(height + 1), 2))
    left, right = sorted(rng.sample(range(width + 1), 2))
    return top, left, bottom, right


def filled(boxes, height, width):
    mask_HW = np.zeros((height, width), np.uint8)
    for top, left, bottom, right in boxes:
        mask_HW[top:bottom, left:right] = 1
    return mask_HW


def different(masks):
    return list({mask_HW.tobytes(): mask_HW for mask_HW in masks if mask_HW.any()}.values())


def rectangles(rng, height, width):
    """None, one or many, which may overlap, each of one or two rectangles."""
    count = rng.choice([0, 1, 2, 5, 40])
    boxes = [[box(rng, height, width) for _ in range(rng.choice([1, 1, 2]))] for _ in range(count)]
    return different(filled(of_mask, height, width) for of_mask in boxes)


def any_masks(rng, height, width):
    """None, one or many, which may overlap: rectangles, single pixels, noise, everything."""
    masks = rectangles(rng, height, width)
    for _ in range(rng.choice([0, 0, 1, 3])):
        noise_HW = np.frombuffer(rng.randbytes(height * width), np.uint8).reshape(height, width)
        masks.append((noise_HW < rng.choice([3, 128, 256])).astype(np.uint8))
    return different(masks)


def disjoint(rng, height, width):
    """None, one or several, no two of which share a pixel; each is in one piece, unless another lies above it."""
    labels_HW = np.zeros((height, width), int)
    for label in range(1, rng.choice([0, 1, 2, 5, 20]) + 1):
        top, left, bottom, right = box(rng, height, width)
        labels_HW[top:bottom, left:right] = label
    return [(labels_HW == label).astype(np.uint8) for label in np.unique(labels_HW) if label]


def single(rng, height, width):
    return any_masks(rng, height, width)[:1]


# ---- layouts ---------------------------------------------------------------------------------------


def compressed(mask_HW):
    rle = coco.encode(np.asfortranarray(mask_HW))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def uncompressed(mask_HW):
    runs, value = [0], 0
    for pixel in mask_HW.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {'size': list(mask_HW.shape), 'counts': runs}


def polygons(mask_HW):
    """Every run of a column as a rectangle, of which the mask is the union."""
    padded = np.pad(mask_HW.astype(int), ((1, 1), (0, 0)))
    ends = np.diff(padded, axis=0).T
    return [
        [column, top, column + 1, top, column + 1, bottom, column, bottom]
        for column in range(mask_HW.shape[1])
        for top, bottom in zip(np.flatnonzero(ends[column] > 0), np.flatnonzero(ends[column] < 0), strict=True)
    ]


def annotation_of(mask_HW, encode=compressed, **others):
    rows, columns = np.nonzero(mask_HW)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return {
        'segmentation': encode(mask_HW),
        'area': int(mask_HW.sum()),
        'bbox': [int(columns.min()), int(rows.min()), int(width), int(height)],
        **others,
    }


def plain(value):
    """NumPy's integers as JSON has them."""
    return value.item()


def dump(content):
    return json.dumps(content, default=plain)


def write(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())


def sa1b_json(sample, encode):
    height, width = sample.size
    scores = {'predicted_iou': 0.9, 'stability_score': 0.95, 'crop_box': [0, 0, width, height]}
    annotations = [annotation_of(mask_HW, encode, id=n, **scores) for n, mask_HW in enumerate(sample.masks)]
    image = {'image_id': 1, 'width': width, 'height': height, 'file_name': f'{sample.name}{sample.suffix}'}
    return dump({'image': image, 'annotations': annotations}).encode()


class Written(NamedTuple):
    """A set on disk."""

    path: str  # as `data.path`
    images: Path | None  # where nothing but its images is


def sa1b_folder(encode):
    def write_set(folder, samples):
        for n, sample in enumerate(samples):
            below = folder / 'sa' / 'ab'[n % 2]
            write(below / f'{sample.name}{sample.suffix}', sample.file)
            write(below / f'{sample.name}.json', sa1b_json(sample, encode))
        return Written(str(folder / 'sa'), folder / 'sa')

    return write_set


def sa1b_tar(folder, samples):
    with tarfile.open(folder / 'sa_0.tar', 'w') as tar:
        for sample in samples:
            add(tar, f'./{sample.name}{sample.suffix}', sample.file)
            add(tar, f'./{sample.name}.json', sa1b_json(sample, compressed))
    return Written(str(folder), folder)


def coco_entries(folder, samples):
    for sample in samples:
        write(folder / 'val' / f'{sample.name}{sample.suffix}', sample.file)
    return [
        {'id': 7 * n, 'file_name': f'{sample.name}{sample.suffix}', 'height': sample.size[0], 'width': sample.size[1]}
        for n, sample in enumerate(samples)
    ]


def coco_instances(encode):
    def write_set(folder, samples):
        annotations = [
            annotation_of(mask_HW, encode, image_id=7 * n, category_id=3, iscrowd=0)
            for n, sample in enumerate(samples)
            for mask_HW in sample.masks
        ]
        annotations = [{'id': n, **annotation} for n, annotation in enumerate(annotations, 1)]
        content = {'images': coco_entries(folder, samples), 'annotations': annotations, 'categories': [{'id': 3}]}
        write(folder / 'annotations/instances.json', dump(content))
        return Written(str(folder / 'annotations/instances.json'), folder / 'val')

    return write_set


def coco_panoptic(folder, samples):
    annotations = []
    for n, sample in enumerate(samples):
        ids = [1 + 300 * m + 70_000 * (m % 2) for m in range(len(sample.masks))]
        ids_HW = sum((id * mask_HW.astype(int) for id, mask_HW in zip(ids, sample.masks, strict=True)), 0)
        ids_HW = np.broadcast_to(ids_HW, sample.size)
        rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 256**2], -1).astype(np.uint8)
        write(folder / f'annotations/panoptic/{sample.name}.png', png(rgb_HW3))
        segments = [
            annotation_of(mask_HW, id=id, category_id=3, iscrowd=0)
            for id, mask_HW in zip(ids, sample.masks, strict=True)
        ]
        annotations.append({'image_id': 7 * n, 'file_name': f'{sample.name}.png', 'segments_info': segments})
    content = {'images': coco_entries(folder, samples), 'annotations': annotations, 'categories': [{'id': 3}]}
    write(folder / 'annotations/panoptic.json', dump(content))
    return Written(str(folder / 'annotations/panoptic.json'), folder / 'val')


def encoded(pixels, image_format):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def png(pixels):
    return encoded(pixels, 'PNG')


def label_map(sample, number_of):
    """(H, W, ..) with `number_of` each mask."""
    background = np.zeros_like(np.asarray(number_of(1)))
    labels = np.broadcast_to(background, (*sample.size, *background.shape)).copy()
    for n, mask_HW in enumerate(sample.masks, 1):
        labels[mask_HW > 0] = number_of(n)
    return labels


def in_8_bits(n):
    return np.uint8(n)


def in_16_bits(n):
    return np.uint16(26_000 + n)  # as in Cityscapes


def in_colour(n):
    return np.array([(37 * n) % 256, 255 - (11 * n) % 256, (200 + 91 * n) % 256], np.uint8)


def label_maps(number_of, image_format='PNG', suffix='.png', names=('images', 'masks')):
    def write_set(folder, samples):
        for sample in samples:
            write(folder / names[0] / f'{sample.name}{sample.suffix}', sample.file)
            if sample.masks:
                mask = encoded(label_map(sample, number_of), image_format)
                write(folder / names[1] / f'{sample.name}{suffix}', mask)
        return Written(str(folder), folder / names[0])

    return write_set


def binary_masks(value, image_format, suffix):
    return label_maps(lambda n: np.uint8(value), image_format, suffix)


def file_per_object(pattern):
    def write_set(folder, samples):
        for sample in samples:
            write(folder / f'images/{sample.name}{sample.suffix}', sample.file)
            for n, mask_HW in enumerate(sample.masks):
                write(folder / 'masks' / pattern.format(sample.name, n), png(255 * mask_HW))
        return Written(str(folder), folder / 'images')

    return write_set


def beside(pattern):
    def write_set(folder, samples):
        for sample in samples:
            write(folder / f'{sample.name}{sample.suffix}', sample.file)
            if sample.masks:
                write(folder / pattern.format(sample.name), png(label_map(sample, in_8_bits)))
        return Written(str(folder), None)

    return write_set


def table(name):
    """Hugging Face's imagefolder; a row cannot say that there are no masks, so it names an empty one."""

    def write_set(folder, samples):
        rows = []
        for sample in samples:
            row = {'file_name': f'i/{sample.name}{sample.suffix}', 'mask_file_name': f'm/{sample.name}.png'}
            write(folder / row['file_name'], sample.file)
            write(folder / row['mask_file_name'], png(label_map(sample, in_8_bits)))
            rows.append({**row, 'text': 'a, "b"'})
        with open(folder / name, 'w', newline='') as file:
            if name.endswith('.csv'):
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(f'{json.dumps(row)}\n' for row in rows)
        return Written(str(folder), folder / 'i')

    return write_set


BOX = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)


def tfds_lvis(folder, samples):
    records = [
        {
            'image': sample.file, 'image/id': n, 'neg_category_ids': [], 'not_exhaustive_category_ids': [],
            'objects': [
                {'id': m, 'area': 2, 'bbox': BOX, 'label': 3, 'segmentation': png(255 * mask_HW)}
                for m, mask_HW in enumerate(sample.masks)
            ],
        }
        for n, sample in enumerate(samples)
    ]  # fmt: skip
    tfds_sets.prepare('lvis', [records[:5], records[5:]])
    return Written('tfds:lvis@train', None)


def tfds_segment_anything(folder, samples):
    four = np.array([0.0, 0, 1, 1])
    records = [
        {
            'image': {
                'content': sample.file, 'file_name': 'x.jpg', 'image_id': n,
                'height': sample.size[0], 'width': sample.size[1],
            },
            'annotations': [
                {
                    'area': 1, 'bbox': four, 'crop_box': four, 'id': 1, 'point_coords': [[1.5, 2.5]],
                    'predicted_iou': 0.75, 'stability_score': 0.5, 'segmentation': compressed(mask_HW),
                }
                for mask_HW in sample.masks
            ],
        }
        for n, sample in enumerate(samples)
    ]  # fmt: skip
    tfds_sets.prepare('segment_anything', [records])
    return Written('tfds:segment_anything', None)


def prepared(folder, samples):
    """What `samjax data prepare` writes."""
    written = sa1b_folder(compressed)(folder, samples)
    prepare(open_index(written.path), written.path, folder / 'out', max_invalid_fraction=0.0, num_workers=1)
    return Written(str(folder / 'out'), None)


def labelme(folder, samples):
    """Shapes of the type mask: a picture of the box around it."""
    for sample in samples:
        shapes = []
        for mask_HW in sample.masks:
            rows, columns = np.nonzero(mask_HW)
            top, left, bottom, right = (f(side).item() for f in (np.min, np.max) for side in (rows, columns))
            crop = base64.b64encode(png(255 * mask_HW[top : bottom + 1, left : right + 1])).decode()
            shapes.append({'label': 'x', 'points': [[left, top], [right, bottom]], 'shape_type': 'mask', 'mask': crop})
        height, width = sample.size
        content = {'version': '5.5.0', 'shapes': shapes, 'imagePath': f'{sample.name}{sample.suffix}'}
        content |= {'imageData': None, 'imageHeight': height, 'imageWidth': width}
        write(folder / 'set' / content['imagePath'], sample.file)
        write(folder / 'set' / f'{sample.name}.json', dump(content))
    return Written(str(folder / 'set'), folder / 'set')


class Layout(NamedTuple):
    """A way to store a set."""

    write: object  # function of a folder and a set -> Written
    masks: object  # what it can express, as a function that gives masks
    kinds: list = ALL_KINDS  # of images


LAYOUTS = {
    'SA-1B': Layout(sa1b_folder(compressed), any_masks, STORED_KINDS),
    'SA-1B, RLE not compressed': Layout(sa1b_folder(uncompressed), any_masks, STORED_KINDS),
    'SA-1B, tar': Layout(sa1b_tar, any_masks, STORED_KINDS),
    'COCO': Layout(coco_instances(compressed), any_masks),
    'COCO, RLE not compressed': Layout(coco_instances(uncompressed), any_masks),
    'COCO, polygons': Layout(coco_instances(polygons), rectangles),
    'COCO panoptic': Layout(coco_panoptic, disjoint),
    'labelme': Layout(labelme, any_masks),
    'label maps': Layout(label_maps(in_8_bits), disjoint),
    'label maps of 16 bits': Layout(label_maps(in_16_bits), disjoint),
    'label maps in colour': Layout(label_maps(in_colour), disjoint),
    'label maps, TIFF': Layout(label_maps(in_8_bits, 'TIFF', '.tif', ('img', 'labels')), disjoint),
    'label maps, BMP': Layout(label_maps(in_8_bits, 'BMP', '.bmp', ('JPEGImages', 'SegmentationObject')), disjoint),
    'binary masks': Layout(binary_masks(255, 'PNG', '.png'), single),
    'binary masks of 1': Layout(binary_masks(1, 'PNG', '.png'), single),
    'binary masks, GIF': Layout(binary_masks(255, 'GIF', '.gif'), single),
    'a file per object': Layout(file_per_object('{}_{}.png'), any_masks),
    'a folder per image': Layout(file_per_object('{}/{}.png'), any_masks),
    'x_mask in one folder': Layout(beside('{}_mask.png'), disjoint),
    'x.png in one folder': Layout(beside('{}.png'), disjoint, JPEG),
    'metadata.csv': Layout(table('metadata.csv'), disjoint),
    'metadata.jsonl': Layout(table('metadata.jsonl'), disjoint),
    'tfds:lvis': Layout(tfds_lvis, any_masks, PNG + JPEG),
    'tfds:segment_anything': Layout(tfds_segment_anything, any_masks, PNG + JPEG),
    'prepared': Layout(prepared, any_masks, STORED_KINDS),
}


# ---- reading back ----------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', LAYOUTS)
def test_read_back_equal(name, seed, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    layout = LAYOUTS[name]
    samples = random_set(seed, layout.masks, layout.kinds)
    (tmp_path / 'set').mkdir()
    written = layout.write(tmp_path / 'set', samples)
    by_name = {
        f'{n:08d}' if written.path.startswith('tfds:') else sample.name: sample for n, sample in enumerate(samples)
    }
    with_masks = {name: sample for name, sample in by_name.items() if sample.masks}

    source = open_records(written.path, tmp_path / 'cache', 0.0)
    for records in (source, open_records(source.folder, tmp_path / 'cache', 0.0)):
        examples = [records[index] for index in range(len(records))]
        examples = {os.path.basename(example.name): example for example in examples}
        assert examples.keys() == with_masks.keys()
        for name, sample in with_masks.items():
            np.testing.assert_array_equal(examples[name].image.pixels(), sample.image_HW3)
            assert_masks(examples[name].rles, sample)
    report = PreparationReport.read(Path(source.folder))
    assert (report.num_images, report.num_kept) == (len(samples), len(with_masks))
    assert report.invalid == {}
    # Numbers of small objects that touch may look interpolated; they are read as they are.
    assert all('in between along the edges' in warning for warning in report.warnings)
    assert report.skipped_masks.counts.keys() <= {'no pixels'}  # the empty mask of a row of a table
    assert_images([source.folder], with_masks)
    if written.images:
        assert_images([str(written.images)], by_name)
        for file in written.images.rglob('*'):
            if file.stem in by_name and file.suffix != '.json':
                np.testing.assert_array_equal(read_image(file), by_name[file.stem].image_HW3)


def assert_images(inputs, by_name):
    images = find_images(inputs)
    assert sorted(map(os.path.basename, images.names)) == sorted(by_name)
    for index, name in enumerate(images.names):
        np.testing.assert_array_equal(images[index].image_HW3, by_name[os.path.basename(name)].image_HW3)


def assert_masks(rles, sample):
    assert {tuple(rle['size']) for rle in rles} <= {sample.size}
    read = sorted(coco.decode(rle).tobytes() for rle in rles)
    assert read == sorted(mask_HW.tobytes() for mask_HW in sample.masks)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', ['COCO', 'COCO, RLE not compressed', 'COCO, polygons'])
def test_evaluation_reads_the_same(name, seed, tmp_path):
    layout = LAYOUTS[name]
    samples = random_set(seed, layout.masks, layout.kinds)
    path, _ = layout.write(tmp_path, samples)
    truth = read_ground_truth(path)
    images = CocoImages(path, truth, 0, 0, ImageOptions())
    assert images.ids == list(truth.images) == [7 * n for n in range(len(samples))]
    for n, sample in enumerate(samples):
        np.testing.assert_array_equal(images[n], sample.image_HW3)
        objects = [item for item in truth.objects if item['image_id'] == 7 * n]
        assert_masks([item['segmentation'] for item in objects], sample)
        assert [item['area'] for item in objects] == [mask_HW.sum() for mask_HW in sample.masks]
        assert not any(item['iscrowd'] or item['ignore'] for item in objects)


def test_sets_have_every_kind_of_image_and_of_masks():
    """Of the sets above together: nothing is tested by accident only."""
    for kinds in (STORED_KINDS, ALL_KINDS):
        sets = [random_set(seed, any_masks, kinds) for seed in SEEDS]
        assert sum(map(len, sets)) >= len(kinds)
        counts = {min(len(sample.masks), 3) for samples in sets for sample in samples}
        assert counts == {0, 1, 2, 3}
        assert any(1 in sample.size and sample.size != (1, 1) for samples in sets for sample in samples)
        overlaps = [sum(sample.masks).max() > 1 for samples in sets for sample in samples if len(sample.masks) > 1]
        assert any(overlaps)
