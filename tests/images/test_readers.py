"""Every reader sees the same pixels of a file, and refuses the same: training, evaluation, predict, masks, embed."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from samples import png_of_16_bits, random_image, saved

from samjax.data.formats.read_options import ReadOptions
from samjax.data.records.source import open_records
from samjax.errors import InvalidExample, SamjaxError
from samjax.evaluation.metrics.average_precision import read_ground_truth
from samjax.evaluation.tasks.coco_images import CocoImages
from samjax.images.open import ImageOptions, read_image
from samjax.jobs.image_collection import find_images

SCENE_HW3 = np.asarray(random_image(3))
SCENE = Image.fromarray(SCENE_HW3)
# How the upright scene is stored under each orientation of EXIF
STORED = {
    1: SCENE_HW3,
    2: SCENE_HW3[:, ::-1],
    3: SCENE_HW3[::-1, ::-1],
    4: SCENE_HW3[::-1],
    5: SCENE_HW3.swapaxes(0, 1),
    6: np.rot90(SCENE_HW3),
    7: SCENE_HW3[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(SCENE_HW3, 3),
}
DEEP_HW3 = SCENE_HW3.astype(np.uint16) * 10 + 7


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rotated(orientation, image_format, **options):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    return saved(image, image_format, exif=exif(orientation), **options)


def data_set(folder, data, suffix):
    """A JSON of COCO whose only image has a rectangle, which shows where it is."""
    folder.mkdir()
    (folder / f'1{suffix}').write_bytes(data)
    image = {'id': 1, 'file_name': f'1{suffix}', 'height': 24, 'width': 40}
    polygon = [[5, 5, 30, 5, 30, 20, 5, 20]]
    annotation = {'id': 1, 'image_id': 1, 'category_id': 1, 'iscrowd': 0, 'area': 375, 'segmentation': polygon}
    content = {'images': [image], 'categories': [{'id': 1, 'name': 'a'}], 'annotations': [annotation]}
    (folder / 'i.json').write_text(json.dumps(content))
    return folder


def training(folder, suffix, options):
    source = open_records(folder / 'i.json', folder / 'cache', 1.0, ReadOptions(image=options))
    return source[0].image.pixels()


def instances(folder, suffix, options):
    path = str(folder / 'i.json')
    return CocoImages(path, read_ground_truth(path), 0, 0, options)[0]


def predict(folder, suffix, options):
    return read_image(folder / f'1{suffix}', options)


def masks(folder, suffix, options):
    return find_images([str(folder / f'1{suffix}')], options)[0].image_HW3


READERS = [training, instances, predict, masks]
SAME = {
    **{f'PNG with orientation {n}': (rotated(n, 'PNG'), '.png') for n in STORED},
    **{f'WebP with orientation {n}': (rotated(n, 'WEBP', lossless=True), '.webp') for n in (3, 6)},
    'TIFF': (saved(SCENE, 'TIFF'), '.tif'),
    'compressed TIFF': (saved(SCENE, 'TIFF', compression='tiff_lzw'), '.TIFF'),
    'WebP': (saved(SCENE, 'WEBP', lossless=True), '.webp'),
    'BMP': (saved(SCENE, 'BMP'), '.bmp'),
    'PNG with another suffix': (saved(SCENE, 'PNG'), '.jpg'),
    'opacity': (saved(SCENE.convert('RGBA'), 'PNG'), '.png'),
}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('name', SAME)
def test_readers_agree(name, reader, tmp_path):
    data, suffix = SAME[name]
    pixels_HW3 = reader(data_set(tmp_path / 'set', data, suffix), suffix, ImageOptions())
    np.testing.assert_array_equal(pixels_HW3, SCENE_HW3)


@pytest.mark.parametrize('orientation', STORED)
def test_readers_agree_about_jpeg(orientation, tmp_path):
    folder = data_set(tmp_path / 'set', rotated(orientation, 'JPEG', quality=100, subsampling=0), '.jpg')
    first_HW3, *others = (reader(folder, '.jpg', ImageOptions()) for reader in READERS)
    assert np.abs(first_HW3.astype(int) - SCENE_HW3).mean() < 3  # 85 if it were rotated otherwise
    for pixels_HW3 in others:
        np.testing.assert_array_equal(pixels_HW3, first_HW3)


@pytest.mark.parametrize('orientation', STORED)
def test_image_without_a_stated_size_is_upright_for_training_and_evaluation(orientation, tmp_path):
    folder = data_set(tmp_path / 'set', rotated(orientation, 'PNG'), '.png')
    content = json.loads((folder / 'i.json').read_text())
    del content['images'][0]['height'], content['images'][0]['width']
    (folder / 'i.json').write_text(json.dumps(content))
    for reader in (training, instances):
        np.testing.assert_array_equal(reader(folder, '.png', ImageOptions()), SCENE_HW3)
    [annotation] = read_ground_truth(str(folder / 'i.json')).objects
    assert annotation['segmentation']['size'] == [24, 40]


REFUSED = {
    'RGB of 16 bits': (png_of_16_bits(DEEP_HW3), '.png', 'not 8 bits'),
    'grey of 16 bits': (png_of_16_bits(DEEP_HW3[..., 0]), '.png', 'not 8 bits'),
    'floating point': (saved(Image.fromarray(SCENE_HW3[..., 0] / np.float32(255)), 'TIFF'), '.tif', 'not 8 bits'),
    '32-bit integers': (saved(Image.fromarray(SCENE_HW3[..., 0].astype(np.int32)), 'TIFF'), '.tif', 'not 8 bits'),
    'pages': (saved(SCENE, 'TIFF', save_all=True, append_images=[SCENE]), '.tif', 'several images in a file'),
    'animated PNG': (saved(SCENE, 'PNG', save_all=True, append_images=[random_image(4)]), '.png', 'several images'),
    'animated WebP': (saved(SCENE, 'WEBP', save_all=True, append_images=[random_image(4)]), '.webp', 'several images'),
    'cut off': (saved(SCENE, 'PNG')[:500], '.png', 'unreadable image'),
    'empty': (b'', '.jpg', 'unreadable image'),
    'too large': (saved(random_image(1, 50, 50), 'PNG'), '.png', 'too many pixels'),
}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('name', REFUSED)
def test_readers_refuse_the_same_files_by_name(name, reader, tmp_path, caplog):
    data, suffix, cause = REFUSED[name]
    folder = data_set(tmp_path / 'set', data, suffix)
    with caplog.at_level(logging.CRITICAL), pytest.raises((SamjaxError, InvalidExample)) as error:
        reader(folder, suffix, ImageOptions(max_pixels=2000))
    message = ': '.join(map(str, error.value.args))
    assert cause in message
    assert '\n' not in message
    assert not re.search('0x[0-9a-f]{4}', message)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('deep_HWC', [DEEP_HW3, DEEP_HW3[..., 0]])
def test_readers_scale_alike(deep_HWC, reader, tmp_path):
    folder = data_set(tmp_path / 'set', png_of_16_bits(deep_HWC), '.png')
    pixels_HW3 = reader(folder, '.png', ImageOptions(bit_depth_range=(7, 2557)))
    expected_HW3 = SCENE_HW3 if deep_HWC.ndim == 3 else SCENE_HW3[..., :1] * np.ones(3)
    np.testing.assert_array_equal(pixels_HW3, expected_HW3)


def test_report_says_what_was_scaled_and_another_range_is_another_preparation(tmp_path):
    folder = data_set(tmp_path / 'set', png_of_16_bits(DEEP_HW3), '.png')
    sources = [
        open_records(folder / 'i.json', tmp_path, 1.0, ReadOptions(image=ImageOptions(limits)))
        for limits in ((7, 2557), (7, 5107))
    ]
    report = json.loads((sources[0].folder / 'report.json').read_text())
    assert report['num_scaled'] == 1
    assert report['options'] == {'bit_depth_range': [7, 2557]}
    assert sources[0].folder != sources[1].folder
    assert abs(sources[0][0].image.pixels().mean() / sources[1][0].image.pixels().mean() - 2) < 0.1
