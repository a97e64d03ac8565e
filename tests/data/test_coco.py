"""COCO's JSON, instances and panoptic: masks as pycocotools has them, images in any folder, invalid ones named."""

import json
import os
import pickle
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from samjax.data.formats import coco, coco_json
from samjax.data.formats.dataset_index import InvalidItem
from samjax.data.records.record import make_record
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import ImageOptions

HEIGHT, WIDTH = 6, 8

RECTANGLE = [1, 1, 5, 1, 5, 4, 1, 4]  # x, y of its corners
RECTANGLE_HW = [
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]
RUNS = {'size': [6, 8], 'counts': [7, 3, 3, 3, 3, 3, 3, 3, 20]}
COMPRESSED = {'size': [6, 8], 'counts': '73300000a0'}

CORNER = [5.0, 3.0, 7.0, 3.0, 7.0, 6.0, 5.0, 6.0]
BOTH_HW = [
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 1, 1, 1, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
]

SEGMENTS_HW = [
    [0, 0, 0, 7, 7, 7, 7, 7],
    [0, 9, 9, 7, 7, 7, 7, 7],
    [0, 9, 9, 7, 7, 7, 7, 7],
    [0, 9, 9, 70000, 70000, 70000, 70000, 70000],
    [0, 0, 0, 70000, 70000, 70000, 70000, 70000],
    [0, 0, 0, 70000, 70000, 70000, 70000, 70000],
]


def write_image(file, height=HEIGHT, width=WIDTH):
    """Writes an image of one colour; returns its bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (width, height), (200, 100, 50)).save(file)
    return file.read_bytes()


def write(file, images, annotations):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({'info': {}, 'images': images, 'annotations': annotations, 'categories': []}))
    return file


def entry(number, file_name, **more):
    return {'id': number, 'file_name': file_name, 'height': HEIGHT, 'width': WIDTH, **more}


def items(file):
    return [item for shard in coco.open_index(file).shards for item in shard.items()]


def invalid(file):
    """Name and cause of each item that is known to be invalid."""
    return [(item.name, item.cause) for item in items(file) if isinstance(item, InvalidItem)]


def loaded(folder, *segmentations):
    """The annotated image with these masks."""
    write_image(folder / 'a.png')
    annotations = [
        {'id': n, 'image_id': 1, 'segmentation': segmentation} for n, segmentation in enumerate(segmentations)
    ]
    (item,) = items(write(folder / 'x.json', [entry(1, 'a.png')], annotations))
    return item.load()


def decoded(annotated):
    return [
        rle.decode(mask if isinstance(mask['counts'], (str, bytes)) else as_bytes(mask)) for mask in annotated.masks
    ]


def as_bytes(mask):
    return rle.frPyObjects(mask, *mask['size'])


def cause_of(item):
    with pytest.raises(InvalidExample) as raised:
        item.load()
    assert raised.value.detail
    return raised.value.cause


# ---- masks of instances ----------------------------------------------------------------------------


def test_polygon_by_hand(tmp_path):
    annotated = loaded(tmp_path, [RECTANGLE])
    np.testing.assert_array_equal(decoded(annotated), [RECTANGLE_HW])
    assert annotated.size == (HEIGHT, WIDTH)
    assert annotated.image == (tmp_path / 'a.png').read_bytes()
    assert annotated.skipped_masks.counts == {}


def test_polygons_of_one_annotation_are_one_mask(tmp_path):
    np.testing.assert_array_equal(decoded(loaded(tmp_path, [RECTANGLE, CORNER])), [BOTH_HW])


def test_rle_of_every_kind_is_read_and_a_damaged_one_costs_one_mask(tmp_path):
    other = {'size': [6, 8], 'counts': [0, 48]}
    annotated = loaded(
        tmp_path, RUNS, {'size': [6, 8], 'counts': 'not RLE'}, other, {'size': [8, 6], 'counts': [0, 48]}
    )
    np.testing.assert_array_equal(decoded(annotated), [RECTANGLE_HW, np.ones((6, 8))])
    assert annotated.skipped_masks.counts == {'damaged RLE': 2}
    assert annotated.skipped_masks['damaged RLE'].example.startswith('annotation 1: ')
    np.testing.assert_array_equal(decoded(loaded(tmp_path, COMPRESSED)), [RECTANGLE_HW])


def test_polygons_as_pycocotools_has_them(tmp_path):
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(-3, 12, 2 * corners).round(2).tolist()] for corners in (3, 4, 7, 20, 50)]
    annotated = loaded(tmp_path, *polygons)
    assert len(annotated.masks) == len(polygons)
    for mask, polygon in zip(annotated.masks, polygons, strict=True):
        assert mask == rle.merge(rle.frPyObjects(polygon, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    'polygon',
    [
        [1, 1, 5, 1],
        [1, 1, 5, 1, 5, 4, 1],
        [1, 1, 5, 1, 5, 'four'],
        [1, 1, 5, 1, 5, None],
        [1, 1, 5, 1, 5, True],
        [1, 1, 5, 1, 5, float('nan')],
        [1, 1, 5, 1, 5, float('inf')],
        [1, 1, 5, 1, 5, 10**400],
        [[1, 1], [5, 1], [5, 4]],
        [],
        None,
        4,
        {},
    ],
)
def test_invalid_polygon_is_left_out(polygon, tmp_path):
    annotated = loaded(tmp_path, [polygon], [polygon, RECTANGLE])
    np.testing.assert_array_equal(decoded(annotated), [RECTANGLE_HW])
    assert annotated.skipped_masks.counts == {'invalid polygon': 1}
    assert annotated.warnings.counts == {'polygon left out of a mask': 1}
    assert annotated.warnings['polygon left out of a mask'].example.startswith('annotation 1: ')


@pytest.mark.parametrize(
    'segmentation',
    [
        None,
        [],
        {},
        7,
        'x',
        True,
        {'size': [6, 8]},
        {'counts': 'x'},
        {'size': [6, 8], 'counts': 5},
        {'size': 6, 'counts': ''},
    ],
)
def test_nonsense_is_no_mask(segmentation, tmp_path):
    annotated = loaded(tmp_path, segmentation, [RECTANGLE])
    assert len(annotated.masks) == 1
    assert annotated.skipped_masks.counts == {'no mask': 1}


def test_boxes_and_keypoints_are_no_masks(tmp_path):
    write_image(tmp_path / 'a.png')
    annotations = [{'id': 1, 'image_id': 1, 'bbox': [1, 1, 4, 3]}, {'id': 2, 'image_id': 1, 'keypoints': [1, 1, 2]}]
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.png')], annotations))
    annotated = item.load()
    assert (annotated.masks, annotated.skipped_masks.counts) == ([], {'no mask': 2})


@pytest.mark.parametrize('polygon', [[20, 20, 30, 20, 30, 30], [-9, -9, -5, -9, -5, -5], [3, 3, 3, 3, 3, 3]])
def test_polygon_without_pixels_is_left_out(polygon, tmp_path):
    annotated = loaded(tmp_path, [polygon])
    assert (annotated.masks, annotated.skipped_masks.counts) == ([], {'no pixels': 1})


def test_huge_coordinates_cover_what_they_enclose(tmp_path):
    far = 1e15
    around = [-far, -far, far, -far, far, far, -far, far]
    above = [-far, -far, far, -far, far, -1, -far, -1]
    annotated = loaded(tmp_path, [around], [above])
    np.testing.assert_array_equal(decoded(annotated), [np.ones((HEIGHT, WIDTH))])
    assert annotated.skipped_masks.counts == {'no pixels': 1}
    assert annotated.warnings.counts == {'polygon far outside its image, which was cut': 1}


def test_endless_outline_takes_neither_time_nor_memory():
    far_and_back = np.random.default_rng(0).uniform(-1e12, 1e12, 400_000).tolist()
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InvalidExample, match='invalid polygon'):
        coco_json.read_segmentation([far_and_back], 3000, 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 10
    assert peak < 100e6


def test_long_outline_of_a_real_mask_is_kept():
    """A comb with a tooth every other column of a large image."""
    height, width = 1500, 2000
    teeth = [corner for x in range(0, width, 2) for corner in (x, 1, x, height, x + 1, height, x + 1, 1)]
    mask = coco_json.read_segmentation([[*teeth, width, 1, width, 0, 0, 0]], height, width)
    assert mask.area == rle.area(mask.rle) == pytest.approx(height * width / 2, rel=0.01)


@pytest.mark.parametrize('segmentation', [[RECTANGLE], COMPRESSED, RUNS, None])
def test_crowd_is_left_out(segmentation, tmp_path):
    write_image(tmp_path / 'a.png')
    annotations = [
        {'id': 1, 'image_id': 1, 'iscrowd': 1, 'segmentation': segmentation},
        {'id': 2, 'image_id': 1, 'iscrowd': 0, 'segmentation': [RECTANGLE]},
    ]
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.png')], annotations))
    annotated = item.load()
    np.testing.assert_array_equal(decoded(annotated), [RECTANGLE_HW])
    assert annotated.skipped_masks.counts == {'crowd': 1}


# ---- images ----------------------------------------------------------------------------------------


def test_form_of_coco_itself(tmp_path):
    """annotations/instances_val2017.json beside val2017; masks go to their image, images keep their order."""
    data = {name: write_image(tmp_path / f'val2017/{name}.jpg', width=width) for name, width in [('b', 8), ('a', 9)]}
    annotations = [
        {'id': 1, 'image_id': 20, 'segmentation': [CORNER]},
        {'id': 2, 'image_id': 10, 'segmentation': [RECTANGLE]},
        {'id': 3, 'image_id': 20, 'segmentation': [RECTANGLE]},
    ]
    images = [entry(20, 'b.jpg'), entry(10, 'a.jpg', width=9)]
    file = write(tmp_path / 'annotations/instances_val2017.json', images, annotations)
    index = coco.open_index(file)
    assert index.layout == 'COCO instances'
    (shard,) = index.shards
    assert [item.name for item in shard.items()] == ['b', 'a']
    b, a = (item.load() for item in shard.items())
    assert (b.image, a.image) == (data['b'], data['a'])
    assert (b.size, a.size) == ((6, 8), (6, 9))
    assert [mask_HW.sum() for mask_HW in decoded(b)] == [6, 12]
    assert [mask_HW.sum() for mask_HW in decoded(a)] == [12]


def test_image_without_annotations_has_no_masks(tmp_path):
    write_image(tmp_path / 'a.png')
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.png')], []))
    assert item.load().masks == []


@pytest.mark.parametrize(
    ('json_at', 'image_at', 'file_name'),
    [
        ('set/x.json', 'set/a.png', 'a.png'),
        ('set/x.json', 'set/images/a.png', 'images/a.png'),
        ('set/x.json', 'images/a.png', 'images/a.png'),
        ('set/x.json', 'images/a.png', '../images/a.png'),
        ('set/x.json', 'set/deep/er/a.png', 'a.png'),
        ('set/x.json', 'set/deep/images/a.png', 'images/a.png'),
        ('set/x.json', 'set/images/a.png', 'elsewhere/a.png'),
        ('set/x.json', 'set/images/a.png', '/lost/a.png'),
        ('set/x.json', 'set/images/a.png', 'images\\a.png'),
        ('set/x.json', 'set/images/a.png', './a.png'),
        ('set/x.json', 'images/deep/a.png', 'a.png'),
        ('annotations/x.json', 'val/a.png', 'a.png'),
        ('sét 1/x y.json', 'sét 1/bîld er/ä 猫.png', 'ä 猫.png'),
    ],
)
def test_image_is_found(json_at, image_at, file_name, tmp_path):
    data = write_image(tmp_path / image_at)
    (item,) = items(write(tmp_path / json_at, [entry(1, file_name)], []))
    assert item.load().image == data


def test_name_and_location(tmp_path):
    write_image(tmp_path / 'set/images/a.b.png')
    write_image(tmp_path / 'other/c.png')
    file = write(tmp_path / 'set/x.json', [entry(1, 'images/a.b.png'), entry(2, '../other/c.png')], [])
    below, beside = items(file)
    assert (below.name, below.location) == ('images/a.b', 'images/a.b.png')
    assert (beside.name, beside.location) == ('../other/c', str(tmp_path / 'other/c.png'))


def test_relative_path_works_from_another_folder(tmp_path, monkeypatch):
    data = write_image(tmp_path / 'set/a.png')
    write(tmp_path / 'set/x.json', [entry(1, 'a.png')], [])
    monkeypatch.chdir(tmp_path / 'set')
    (item,) = items(Path('x.json'))
    monkeypatch.chdir('/')
    assert item.load().image == data


def test_whole_path_decides_between_equal_basenames(tmp_path):
    first, second = (
        write_image(tmp_path / f'set/deep/{part}/a.png', height=height) for part, height in [('p', 6), ('q', 7)]
    )
    file = write(tmp_path / 'set/x.json', [entry(1, 'q/a.png'), entry(2, 'p/a.png')], [])
    assert [item.load().image for item in items(file)] == [second, first]


def test_ambiguous_basename_names_both(tmp_path):
    for part in 'pq':
        write_image(tmp_path / f'set/{part}/a.png')
    (item,) = items(write(tmp_path / 'set/x.json', [entry(1, 'a.png')], []))
    assert item.cause == 'no image'
    assert str(tmp_path / 'set/p/a.png') in item.detail
    assert str(tmp_path / 'set/q/a.png') in item.detail
    assert cause_of(item) == 'no image'


def test_one_file_is_not_taken_for_two_images(tmp_path):
    write_image(tmp_path / 'set/images/a.png')
    file = write(tmp_path / 'set/x.json', [entry(1, 'p/a.png'), entry(2, 'q/a.png')], [])
    assert invalid(file) == [('p/a', 'no image'), ('q/a', 'no image')]


def test_absent_image_is_named(tmp_path):
    write_image(tmp_path / 'set/a.png')
    write_image(tmp_path / 'b.png')
    write_image(tmp_path / 'other/c.png')  # a neighbour's: this folder has images of its own
    write_image(tmp_path / 'set/.hidden/d.png')
    file = write(tmp_path / 'set/x.json', [entry(n, f'{name}.png') for n, name in enumerate('abcd')], [])
    assert invalid(file) == [('c', 'no image'), ('d', 'no image')]
    assert 'c.png' in items(file)[2].detail


def test_annotations_folder_may_hold_images(tmp_path):
    write_image(tmp_path / 'annotations/a.png')
    data = write_image(tmp_path / 'val/b.png')
    file = write(tmp_path / 'annotations/x.json', [entry(1, 'a.png'), entry(2, 'b.png')], [])
    assert [item.load().image for item in items(file)][1] == data


def test_names_that_are_no_paths_are_absent(tmp_path):
    names = ['x' * 300, 'nul\0.png']
    file = write(tmp_path / 'set/x.json', [entry(n, name) for n, name in enumerate(names)], [])
    assert [cause for _, cause in invalid(file)] == ['no image'] * 2


def test_linked_folder_is_searched_once(tmp_path):
    data = write_image(tmp_path / 'store/a.png')
    folder = tmp_path / 'mine/set'
    folder.mkdir(parents=True)
    for link in ('p', 'q'):
        (folder / link).symlink_to(tmp_path / 'store')
    (tmp_path / 'store/up').symlink_to(folder)
    (item,) = items(write(folder / 'x.json', [entry(1, 'a.png')], []))
    assert item.load().image == data


def test_walk_is_done_once(tmp_path, monkeypatch):
    walked, walk = [], os.walk
    monkeypatch.setattr(os, 'walk', lambda root, **more: walked.append(Path(root)) or walk(root, **more))
    names = [f'{n}.png' for n in range(9)]
    for name in names:
        write_image(tmp_path / 'val' / name)
    file = write(tmp_path / 'annotations/x.json', [entry(n, name) for n, name in enumerate(names)], [])
    assert invalid(file) == []
    assert walked == [tmp_path / 'annotations', tmp_path]


@pytest.mark.parametrize(
    ('url', 'name'),
    [
        ('http://images.cocodataset.org/val2017/a.png', 'val2017/a'),
        ('https://host/deep/val2017/a.png?size=1', 'val2017/a'),
        ('http://host/a.png', 'a'),
        ('http://host/%C3%A4%20b/a.png', 'ä b/a'),
    ],
)
def test_file_name_of_lvis(url, name, tmp_path):
    data = write_image(tmp_path / f'{name}.png')
    image = {'id': 1, 'coco_url': url, 'height': HEIGHT, 'width': WIDTH, 'not_exhaustive_category_ids': []}
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    (item,) = items(write(tmp_path / 'lvis_v1_val.json', [image], [annotation]))
    assert item.name == name
    assert item.load().image == data


@pytest.mark.parametrize(
    ('file_name', 'image_at'),
    [
        ('images/Capture_d%C3%A9cran%201.png', 'Capture_d\xe9cran 1.png'),
        ('Capture_d%C3%A9cran%201.png', 'Capture_d\xe9cran 1.png'),
        ('caf\xe9.png', 'cafe\u0301.png'),
        ('cafe\u0301/a.png', 'caf\xe9/a.png'),
        ('%C3%A9/a.png', 'deep/e\u0301/a.png'),
        ('100%.png', '100%.png'),
        ('a%20b.png', 'a%20b.png'),
        ('/images/a.png', 'images/a.png'),
        ('https://host/bucket/images/a%20b.png?key=1', 'images/a b.png'),
        ('C:\\data\\images\\a.png', 'images/a.png'),
    ],
)
def test_file_names_in_other_spellings(file_name, image_at, tmp_path):
    data = write_image(tmp_path / 'set' / image_at)
    write_image(tmp_path / 'set/other.png')
    file = write(tmp_path / 'set/x.json', [entry(1, file_name), entry(2, 'other.png')], [])
    assert items(file)[0].load().image == data


@pytest.mark.parametrize(
    ('file_name', 'image_at', 'hint'),
    [
        ('a.PNG', 'a.png', 'a.png is there, with other letter case'),
        ('\xc9t\xe9.png', 'e\u0301t\xe9.png', r'e\u0301t\xe9.png is there, with other letter case'),
        ('a.jpg', 'images/a.png', 'images/a.png is there, with another suffix'),
        ('a', 'a.png', 'a.png is there, with another suffix'),
        ('A.jpg', 'a.png', 'a.png is there, with other letter case and another suffix'),
    ],
)
def test_similar_file_is_only_pointed_out(file_name, image_at, hint, tmp_path):
    write_image(tmp_path / 'set' / image_at)
    (item,) = items(write(tmp_path / 'set/x.json', [entry(1, file_name)], []))
    assert item.cause == 'no image'
    assert hint in item.detail


def test_file_names_whose_bytes_are_not_utf8(tmp_path):
    """One is missing and lies beside them, one is named in the JSON as os.listdir names it."""
    (tmp_path / 'set').mkdir()
    data = write_image(tmp_path / 'a.png')
    for name in (b'caf\xe9.png', b'b\xff.PNG'):
        (tmp_path / 'set' / os.fsdecode(name)).write_bytes(data)
    images = [entry(1, 'caf\udce9.png'), entry(2, 'b\xff.png'), entry(3, 'caf%E9.png')]
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    first, missing, decoded_name = items(write(tmp_path / 'set/x.json', images, [annotation]))
    record = make_record(first, ImageOptions()).content
    assert (record['name'], first.location) == (rb'caf\udce9', r'caf\udce9.png')
    assert missing.cause == 'no image'
    assert decoded_name.load().image == data
    assert coco.open_index(tmp_path / 'set/x.json').digest


def test_broken_link_is_one_bad_image(tmp_path):
    write_image(tmp_path / 'a.png')
    (tmp_path / 'b.png').symlink_to('/nowhere/b.png')
    a, b = items(write(tmp_path / 'x.json', [entry(1, 'a.png'), entry(2, 'b.png')], []))
    assert a.load().image
    with pytest.raises(InvalidExample, match='it is a link to /nowhere/b.png, which is not there'):
        b.load()


def test_lvis_finds_the_file_by_its_basename(tmp_path):
    data = write_image(tmp_path / 'images/a.png')
    image = {'id': 1, 'coco_url': 'http://images.cocodataset.org/val2017/a.png'}
    (item,) = items(write(tmp_path / 'lvis_v1_val.json', [image], []))
    assert item.load().image == data


@pytest.mark.parametrize(
    ('sides', 'stated'),
    [({'height': height, 'width': 8}, True) for height in (6, 6.0, '6', '6.0')]
    + [({'height': height, 'width': 8}, False) for height in (0, -6, True, 6.5, 'six', None, 10**12)]
    + [({}, False), ({'height': 6}, False)],
)
def test_size_comes_from_the_image_if_the_json_has_none_and_that_is_said(sides, stated, tmp_path):
    write_image(tmp_path / 'a.png')
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    (item,) = items(write(tmp_path / 'x.json', [{'id': 1, 'file_name': 'a.png', **sides}], [annotation]))
    annotated = item.load()
    assert annotated.size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decoded(annotated), [RECTANGLE_HW])
    warning = 'no valid height and width in the JSON, those of the image file are taken'
    assert annotated.warnings.counts == ({} if stated else {warning: 1})


@pytest.mark.parametrize('sides', [{'height': 8, 'width': 6}, {'height': 60, 'width': 80}, {'height': '6', 'width': 6}])
def test_swapped_and_wrong_sizes_are_counted_by_name(sides, tmp_path):
    write_image(tmp_path / 'a.png')
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    (item,) = items(write(tmp_path / 'x.json', [{'id': 1, 'file_name': 'a.png', **sides}], [annotation]))
    with pytest.raises(InvalidExample) as raised:
        make_record(item, ImageOptions())
    assert raised.value.cause == 'wrong size'


def test_image_is_not_decoded_if_the_json_has_its_size(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no image')
    stated, unstated = {'height': 6, 'width': 8}, {}
    for sides, wrong in [(stated, None), (unstated, 'unreadable image')]:
        (item,) = items(write(tmp_path / 'x.json', [{'id': 1, 'file_name': 'a.png', **sides}], []))
        if wrong:
            assert cause_of(item) == wrong
        else:
            assert item.load().image == b'no image'


def test_vanished_image_is_unreadable(tmp_path):
    write_image(tmp_path / 'a.png')
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.png')], []))
    (tmp_path / 'a.png').unlink()
    assert cause_of(item) == 'unreadable image'


# ---- entries that contradict each other ------------------------------------------------------------


def test_second_of_one_id_is_invalid(tmp_path):
    for name in 'ab':
        write_image(tmp_path / f'{name}.png')
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    first, second = items(write(tmp_path / 'x.json', [entry(1, 'a.png'), entry(1, 'b.png')], [annotation]))
    assert len(first.load().masks) == 1
    assert cause_of(second) == 'duplicate id'


def test_files_that_differ_in_their_suffix_are_images_of_their_own(tmp_path):
    for name in ('a.png', 'a.jpg'):
        write_image(tmp_path / name)
    annotations = [{'id': n, 'image_id': n, 'segmentation': [RECTANGLE]} for n in (1, 2)]
    first, second = items(write(tmp_path / 'x.json', [entry(1, 'a.png'), entry(2, 'a.jpg')], annotations))
    assert (first.name, second.name) == ('a', 'a.jpg')
    assert len(first.load().masks) == len(second.load().masks) == 1


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_image_without_size_is_rotated_as_exif_says(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'a.jpg', exif=exif)
    annotation = {'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}
    (item,) = items(write(tmp_path / 'x.json', [{'id': 1, 'file_name': 'a.jpg'}], [annotation]))
    size = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    content = make_record(item, ImageOptions()).content
    assert (content['height'], content['width'], content['orientation']) == (*size, orientation)


@pytest.mark.parametrize('again', ['a.png', './a.png'])
def test_second_of_one_name_is_invalid(again, tmp_path):
    write_image(tmp_path / 'a.png')
    file = write(tmp_path / 'x.json', [entry(1, 'a.png'), entry(2, again), entry(3, 'a.png')], [])
    assert [cause for _, cause in invalid(file)] == ['duplicate name'] * 2
    assert len({item.name for item in items(file)}) == 3


def test_unknown_image_ids_are_named_once_each(tmp_path):
    write_image(tmp_path / 'a.png')
    numbers = [1, 5, 5.0, 6, None, '1', [1], '5']
    annotations = [{'id': n, 'image_id': number, 'segmentation': [RECTANGLE]} for n, number in enumerate(numbers)]
    file = write(tmp_path / 'x.json', [entry(1, 'a.png')], [*annotations, 'nonsense', {'id': 0, 'image_id': 5}])
    valid, *unknown = items(file)
    assert len(valid.annotations) == 2
    assert [(item.name, item.cause) for item in unknown] == [
        ('image 5', 'unknown image id'),
        ('image 6', 'unknown image id'),
        ('image None', 'unknown image id'),
    ]
    assert [item.detail.split()[0] for item in unknown] == ['4', '1', '3']


def test_unknown_image_id_has_a_name_of_its_own(tmp_path):
    write_image(tmp_path / 'image 5.png')
    file = write(tmp_path / 'x.json', [entry(1, 'image 5.png')], [{'id': 1, 'image_id': 5}])
    assert len({item.name for item in items(file)}) == 2


def test_annotations_of_an_invalid_image_are_not_unknown(tmp_path):
    file = write(
        tmp_path / 'set/x.json', [{'id': 1}, entry(2, 'absent.png')], [{'id': n, 'image_id': n} for n in (1, 2)]
    )
    assert invalid(file) == [('images[0]', 'missing key'), ('absent', 'no image')]


def test_images_without_id_are_not_those_of_annotations_without(tmp_path):
    file = write(tmp_path / 'set/x.json', [{'file_name': 'a.png'}], [{'id': 1}])
    assert invalid(file) == [('images[0]', 'missing key'), ('image None', 'unknown image id')]


OWN_IDS = {
    'restart per image': [1, 2, 1, 2],
    'all 0': [0, 0, 0, 0],
    'text': ['x', 'x', 'x', 'y'],
    'null': [None, None, None, None],
    'mixed': [1, '1', 1.0, True],
}


@pytest.mark.parametrize('numbers', OWN_IDS.values(), ids=OWN_IDS)
def test_ids_of_annotations_may_repeat(numbers, tmp_path):
    for name in 'ab':
        write_image(tmp_path / f'{name}.png')
    content = [(1, RECTANGLE), (1, CORNER), (2, CORNER), (2, RECTANGLE)]
    annotations = [
        {'id': number, 'image_id': image, 'segmentation': [polygon]}
        for number, (image, polygon) in zip(numbers, content, strict=True)
    ]
    images = [entry(1, 'a.png'), entry(2, 'b.png')]
    a, b = (item.load() for item in items(write(tmp_path / 'x.json', images, annotations)))
    assert [mask_HW.sum() for mask_HW in decoded(a)] == [12, 6]
    assert [mask_HW.sum() for mask_HW in decoded(b)] == [6, 12]
    assert a.skipped_masks == b.skipped_masks == {}


def test_same_mask_in_the_same_image_counts_once(tmp_path):
    """However it is written: the rectangle is here as polygon and as both kinds of RLE."""
    write_image(tmp_path / 'a.png')
    write_image(tmp_path / 'b.png')
    masks = [(1, [RECTANGLE]), (1, RUNS), (1, [CORNER]), (2, [RECTANGLE]), (1, COMPRESSED)]
    annotations = [{'id': 7 + n, 'image_id': image, 'segmentation': mask} for n, (image, mask) in enumerate(masks)]
    del annotations[1]['id']
    images = [entry(1, 'a.png'), entry(2, 'b.png')]
    a, b = (item.load() for item in items(write(tmp_path / 'x.json', images, annotations)))
    assert [mask_HW.sum() for mask_HW in decoded(a)] == [12, 6]
    assert a.skipped_masks == {'duplicate mask': (2, 'annotations[1]')}
    assert (len(b.masks), b.skipped_masks) == (1, {})


@pytest.mark.parametrize(
    ('of_image', 'of_annotation'), [(1, '1'), ('1', 1), (1.0, '0001'), ('ab', ' ab '), ('01', 1.0)]
)
def test_ids_match_whatever_their_type(of_image, of_annotation, tmp_path):
    write_image(tmp_path / 'a.png')
    annotation = {'id': 1, 'image_id': of_annotation, 'segmentation': [RECTANGLE]}
    (item,) = items(write(tmp_path / 'x.json', [entry(of_image, 'a.png')], [annotation]))
    assert len(item.load().masks) == 1


CROWDS = [(value, True) for value in (1, True, '1', 'true', 'True', 1.0)]
CROWDS += [(value, False) for value in (0, False, '0', 'false', ' FALSE', 0.0, None)]
CROWDS += [(value, None) for value in (2, -1, 'maybe', '', [], {}, 0.5)]


@pytest.mark.parametrize(('iscrowd', 'crowd'), CROWDS)
def test_iscrowd_in_every_form(iscrowd, crowd, tmp_path):
    write_image(tmp_path / 'a.png')
    annotations = [{'id': 3, 'image_id': 1, 'iscrowd': iscrowd, 'segmentation': [RECTANGLE]}]
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.png')], annotations))
    annotated = item.load()
    assert len(annotated.masks) == (crowd is False)
    expected = {True: {'crowd': 1}, False: {}, None: {'unclear iscrowd': 1}}
    assert annotated.skipped_masks.counts == expected[crowd]


@pytest.mark.parametrize(
    'image',
    [{'file_name': 'a.png'}, {'id': '', 'file_name': 'a.png'}, {'id': 1.5, 'file_name': 'a.png'}]
    + [
        {'id': 1},
        {'id': 1, 'file_name': ''},
        {'id': 1, 'file_name': 5},
        {'id': 1, 'file_name': '..'},
        {'id': 1, 'file_name': '\ud800/a.png'},
        'nonsense',
        None,
    ]
    + [{'id': 1, 'coco_url': 'http://host/'}, {'id': True, 'file_name': 'a.png'}],
)
def test_entry_without_id_or_file_name_is_invalid(image, tmp_path):
    write_image(tmp_path / 'b.png')
    invalid_item, valid = items(write(tmp_path / 'x.json', [image, entry(7, 'b.png')], []))
    assert (invalid_item.name, cause_of(invalid_item)) == ('images[0]', 'missing key')
    assert valid.load().masks == []


# ---- panoptic --------------------------------------------------------------------------------------


def write_segments(file, segments_HW=SEGMENTS_HW):
    """A PNG with the id of each pixel as R + 256 G + 256^2 B."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ids_HW = np.array(segments_HW)
    rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 256**2], -1)
    Image.fromarray(rgb_HW3.astype(np.uint8)).save(file)


def segment(number, crowd=0):
    return {'id': number, 'iscrowd': crowd, 'category_id': 1, 'area': 1, 'bbox': [0, 0, 1, 1]}


def write_panoptic(folder, segments, file_name='a.png', **more):
    """A panoptic set of one image; returns the JSON."""
    write_image(folder / 'val/a.jpg')
    annotation = {'image_id': 1, 'file_name': file_name, 'segments_info': segments, **more}
    return write(folder / 'annotations/panoptic_val.json', [entry(1, 'a.jpg')], [annotation])


def test_panoptic_by_hand(tmp_path):
    """70000 = 112 + 256 * 17 + 256^2 * 1."""
    file = write_panoptic(tmp_path, [segment(70000), segment(7, crowd=1), segment(9), segment(8)])
    write_segments(tmp_path / 'annotations/panoptic_val/a.png')
    with Image.open(tmp_path / 'annotations/panoptic_val/a.png') as image:
        assert image.getpixel((7, 5)) == (112, 17, 1)
    assert coco.open_index(file).layout == 'COCO panoptic'
    (item,) = items(file)
    annotated = item.load()
    assert annotated.image == (tmp_path / 'val/a.jpg').read_bytes()
    np.testing.assert_array_equal(decoded(annotated), [np.equal(SEGMENTS_HW, 70000), np.equal(SEGMENTS_HW, 9)])
    assert annotated.skipped_masks.counts == {'crowd': 1, 'no pixels': 1}


@pytest.mark.parametrize('path', ['annotations/a.png', 'segments/a.png', 'a.png', 'deep/er/a.png'])
def test_segments_are_found(path, tmp_path):
    file = write_panoptic(tmp_path, [segment(7), segment(9), segment(70000)])
    write_segments(tmp_path / path)
    (item,) = items(file)
    assert len(item.load().masks) == 3


@pytest.mark.parametrize('path', ['set/panoptic/a.png', 'set/a.png'])
def test_image_is_not_taken_for_its_segments_nor_they_for_it(path, tmp_path):
    """Both are called a.png, somewhere below one folder."""
    data = write_image(tmp_path / 'set/images/a.png')
    write_segments(tmp_path / path)
    annotation = {'image_id': 1, 'file_name': 'a.png', 'segments_info': [segment(n) for n in (7, 9, 70000)]}
    (item,) = items(write(tmp_path / 'set/panoptic.json', [entry(1, 'a.png')], [annotation]))
    annotated = item.load()
    assert annotated.image == data
    assert len(annotated.masks) == 3


def test_segments_that_are_not_listed_are_wrong(tmp_path):
    file = write_panoptic(tmp_path, [segment(7), segment(9)])
    write_segments(tmp_path / 'annotations/panoptic_val/a.png')
    (item,) = items(file)
    assert cause_of(item) == 'wrong segments'
    with pytest.raises(InvalidExample, match='70000'):
        item.load()


def test_absent_segments_are_named(tmp_path):
    (item,) = items(write_panoptic(tmp_path, [segment(7)]))
    assert cause_of(item) == 'no PNG'
    assert 'a.png' in item.detail


def test_damaged_segments_are_unreadable(tmp_path):
    file = write_panoptic(tmp_path, [segment(7)])
    write_segments(tmp_path / 'annotations/a.png')
    png = tmp_path / 'annotations/a.png'
    png.write_bytes(png.read_bytes()[:-30])
    (item,) = items(file)
    assert cause_of(item) == 'unreadable PNG'


def test_segments_of_another_size_are_wrong(tmp_path):
    file = write_panoptic(tmp_path, [segment(7)])
    write_segments(tmp_path / 'annotations/a.png', [[7, 7], [7, 7]])
    (item,) = items(file)
    assert cause_of(item) == 'wrong size'


def test_grey_segments_are_wrong(tmp_path):
    file = write_panoptic(tmp_path, [segment(7)])
    Image.new('L', (WIDTH, HEIGHT), 7).save(tmp_path / 'annotations/a.png')
    (item,) = items(file)
    assert cause_of(item) == 'wrong segments'
    with pytest.raises(InvalidExample, match='type L'):
        item.load()


@pytest.mark.parametrize('mode', ['RGBA', 'P'])
def test_other_colour_pngs_are_read(mode, tmp_path):
    file = write_panoptic(tmp_path, [segment(7), segment(9), segment(70000)])
    png = tmp_path / 'annotations/a.png'
    write_segments(png)
    Image.open(png).convert(mode, **({'palette': Image.Palette.ADAPTIVE} if mode == 'P' else {})).save(png)
    (item,) = items(file)
    np.testing.assert_array_equal(decoded(item.load()), [np.equal(SEGMENTS_HW, n) for n in (7, 9, 70000)])


@pytest.mark.parametrize('segments', [[{'iscrowd': 0}], [{'id': 'seven'}], [{'id': 7.5}], ['nonsense'], None, {}])
def test_segments_without_id_miss_a_key(segments, tmp_path):
    file = write_panoptic(tmp_path, segments)
    write_segments(tmp_path / 'annotations/a.png')
    assert invalid(file) == [('a', 'missing key')]


def test_panoptic_annotation_without_file_name_misses_a_key(tmp_path):
    assert invalid(write_panoptic(tmp_path, [segment(7)], file_name=None)) == [('a', 'missing key')]


@pytest.mark.parametrize('numbers', [('7', '9', '70000'), (7.0, 9.0, 70000.0), (' 07', '9.0', 70000)])
def test_ids_of_segments_may_be_text_or_float(numbers, tmp_path):
    file = write_panoptic(tmp_path, list(map(segment, numbers)), file_name='%61.png', image_id='01')
    write_segments(tmp_path / 'annotations/a.png')
    (item,) = items(file)
    np.testing.assert_array_equal(decoded(item.load()), [np.equal(SEGMENTS_HW, n) for n in (7, 9, 70000)])


def test_segments_with_text_flags(tmp_path):
    file = write_panoptic(tmp_path, [segment(7, 'true'), segment(9, 'false'), segment(70000, 'some')])
    write_segments(tmp_path / 'annotations/a.png')
    (item,) = items(file)
    annotated = item.load()
    np.testing.assert_array_equal(decoded(annotated), [np.equal(SEGMENTS_HW, 9)])
    assert annotated.skipped_masks == {'crowd': (1, 'segment 7'), 'unclear iscrowd': (1, "segment 70000: 'some'")}


@pytest.mark.parametrize('channels', [(), (3,)])
def test_16_bit_segments_are_wrong(channels, tmp_path):
    """pillow would cut the colours to 8 bits."""
    file = write_panoptic(tmp_path, [segment(7)])
    cv2.imwrite(str(tmp_path / 'annotations/a.png'), np.full((HEIGHT, WIDTH, *channels), 7 * 256, np.uint16))
    (item,) = items(file)
    assert cause_of(item) == 'wrong segments'


def test_duplicate_segments_are_left_out(tmp_path):
    """Of one id, and those of a second annotation of the same image."""
    write_image(tmp_path / 'a.jpg')
    write_segments(tmp_path / 'x/a.png')
    listed = [[segment(7), segment(9), segment(7, crowd=1), segment(70000)], [segment(7), segment(9)]]
    annotations = [{'image_id': 1, 'file_name': 'a.png', 'segments_info': segments} for segments in listed]
    (item,) = items(write(tmp_path / 'x.json', [entry(1, 'a.jpg')], annotations))
    annotated = item.load()
    assert len(annotated.masks) == 3
    assert annotated.skipped_masks.counts == {'duplicate id': 3}


def test_panoptic_image_without_annotation_has_no_masks(tmp_path):
    for name in 'ab':
        write_image(tmp_path / f'{name}.jpg')
    write_segments(tmp_path / 'x/a.png')
    annotation = {'image_id': 1, 'file_name': 'a.png', 'segments_info': [segment(n) for n in (7, 9, 70000)]}
    unknown = {'image_id': 3, 'file_name': 'c.png', 'segments_info': []}
    images = [entry(1, 'a.jpg'), entry(2, 'b.jpg')]
    a, b, c = items(write(tmp_path / 'x.json', images, [annotation, unknown]))
    assert (len(a.load().masks), b.load().masks) == (3, [])
    assert (c.name, c.cause) == ('image 3', 'unknown image id')


# ---- the data set ---------------------------------------------------------------------------------------


def test_items_go_to_other_processes(tmp_path):
    write_image(tmp_path / 'a.jpg')
    write_segments(tmp_path / 'panoptic/a.png')
    annotation = {'image_id': 1, 'file_name': 'a.png', 'segments_info': [segment(n) for n in (7, 9, 70000)]}
    files = [
        write(tmp_path / 'x.json', [entry(1, 'a.jpg')], [{'id': 1, 'image_id': 1, 'segmentation': [RECTANGLE]}]),
        write(tmp_path / 'panoptic.json', [entry(1, 'a.jpg')], [annotation]),
    ]
    for file in files:
        (item,) = items(file)
        assert pickle.loads(pickle.dumps(item)) == item


def test_digest_changes_with_every_file(tmp_path):
    folder = tmp_path / 'set'
    write_image(folder / 'a.jpg')
    write_segments(folder / 'x/a.png')
    annotation = {'image_id': 1, 'file_name': 'a.png', 'segments_info': [segment(n) for n in (7, 9, 70000)]}
    images = [entry(1, 'a.jpg'), entry(2, 'b.jpg')]
    file = write(folder / 'x.json', images, [annotation])
    digests = [coco.open_index(file).digest]
    assert coco.open_index(file).digest == digests[0]
    assert len(digests[0]) == 32
    write_image(folder / 'b.jpg')
    digests.append(coco.open_index(file).digest)
    for changed in ('x.json', 'a.jpg', 'b.jpg', 'x/a.png'):
        os.utime(folder / changed, ns=(10**18, 10**18))
        digests.append(coco.open_index(file).digest)
    folder.rename(tmp_path / 'moved')
    digests.append(coco.open_index(tmp_path / 'moved/x.json').digest)
    assert len(set(digests)) == len(digests)


def test_many_annotations_are_grouped_in_linear_time(tmp_path):
    count = 60_000
    annotations = [{'id': n, 'image_id': n % 3000, 'bbox': [1, 2, 3, 4]} for n in range(count)]
    file = write(tmp_path / 'set/x.json', [entry(n, f'{n}.png') for n in range(3000)], annotations)
    start = time.monotonic()
    index = coco.open_index(file)
    assert time.monotonic() - start < 20  # s; a search of all annotations for each image takes minutes
    assert [shard.weight for shard in index.shards] == [1024, 1024, 952]


CONTENTS = {
    '{"images": [], "annotations": []}': '',
    '\ufeff{"images": [], "annotations": []}': '',
    '{"images": [], "annotations": [': 'not valid JSON',
    '': 'not valid JSON',
    '{"images": ' + '[' * 100_000: 'not valid JSON',
    '["images", "annotations"]': 'not a JSON object',
    '{"images": []}': 'no list of annotations',
    '{"images": {}, "annotations": {}}': 'no list of images and annotations',
    '{"image": {"height": 6}, "annotations": []}': 'no list of images',
}


@pytest.mark.parametrize(('text', 'wrong'), CONTENTS.items(), ids=range(len(CONTENTS)))
def test_other_json_is_told_apart(text, wrong, tmp_path):
    file = tmp_path / 'x.json'
    file.write_text(text, encoding='utf-8')
    assert coco.is_coco(file) == (not wrong)
    if wrong:
        with pytest.raises(SamjaxError, match=wrong) as raised:
            coco.open_index(file)
        assert str(file) in str(raised.value)
        assert 'data.path must name' in str(raised.value)
    else:
        assert coco.open_index(file).shards == []


@pytest.mark.parametrize('name', ['absent.json', 'folder.json'])
def test_file_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / 'folder.json').mkdir()
    assert not coco.is_coco(tmp_path / name)
    with pytest.raises(SamjaxError, match=f'{name} cannot be read'):
        coco.open_index(tmp_path / name)


def test_bytes_that_are_no_text_are_no_json(tmp_path):
    file = tmp_path / 'x.json'
    file.write_bytes(b'\xff"images" "annotations"')
    assert not coco.is_coco(file)
    with pytest.raises(SamjaxError, match='not valid JSON'):
        coco.open_index(file)


def test_json_of_sa1b_is_not_parsed(tmp_path, monkeypatch):
    file = tmp_path / 'sa_1.json'
    image = {'image_id': 1, 'width': WIDTH, 'height': HEIGHT, 'file_name': 'sa_1.jpg'}
    file.write_text(json.dumps({'image': image, 'annotations': [{'id': 1, 'segmentation': COMPRESSED}]}))
    monkeypatch.setattr(coco_json.json, 'loads', lambda text: pytest.fail('parsed'))
    assert not coco.is_coco(file)


# ---- real data -------------------------------------------------------------------------------------


def test_real_panoptic_and_instances_have_the_same_masks(real_data):
    folder = real_data('coco_panoptic_sample')
    sets = []
    for file, layout in [
        ('panoptic_examples.json', 'COCO panoptic'),
        ('panoptic_coco_detection_format.json', 'COCO instances'),
    ]:
        assert coco.is_coco(folder / file)
        assert coco.open_index(folder / file).layout == layout
        by_name = {item.name: item.load() for item in items(folder / file)}
        assert by_name.keys() == {'000000142238', '000000439180'}
        for name, annotated in by_name.items():
            file = folder / f'input_images/{name}.jpg'
            assert annotated.image == file.read_bytes()
            with Image.open(file) as image:
                assert annotated.size == (image.height, image.width)
        sets.append(
            {name: {mask_HW.tobytes() for mask_HW in decoded(annotated)} for name, annotated in by_name.items()}
        )
        assert [(len(item.masks), item.skipped_masks.counts) for item in by_name.values()] == [
            (17, {'crowd': 1}),
            (30, {'crowd': 2}),
        ]
    assert sets[0] == sets[1]
    assert [len(masks) for masks in sets[0].values()] == [17, 30]
