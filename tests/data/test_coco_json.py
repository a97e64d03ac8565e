"""What is common to all readers of COCO's JSON: the form, fields, and segmentations as compressed RLE."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco

from samjax.data.formats import coco_json
from samjax.errors import InvalidExample, SamjaxError
from samjax.masks.rle import run_lengths

MASK_HW = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
COUNTS = [2, 3, 1]  # down the columns


def test_read(tmp_path):
    file = tmp_path / 'x.json'
    with pytest.raises(SamjaxError, match='x.json cannot be read .No such file or directory.: do this$'):
        coco_json.read(file, 'do this')
    for text in (b'{', b'\xff', b'[' * 100_000):
        file.write_bytes(text)
        with pytest.raises(SamjaxError, match='x.json is not valid JSON .*: do this$'):
            coco_json.read(file, 'do this')
    file.write_text(json.dumps({'a': [1]}))
    assert coco_json.read(file, 'do this') == {'a': [1]}


def test_form():
    assert coco_json.wrong_form({'a': [], 'b': [1], 'c': 2}, ('a', 'b')) == ''
    assert coco_json.wrong_form({'a': [], 'c': 2}, ('a', 'b', 'c')) == 'has no list of b and c'
    assert coco_json.wrong_form([], ('a',)) == 'is not a JSON object'


@pytest.mark.parametrize(
    ('value', 'expected'),
    [(value, 1) for value in (1, 1.0, '1', '0001', ' 1 ', '1.0', '1.', '+1')]
    + [(-3, -3), ('-3', -3), ('000000123', 123), (10**30, 10**30)]
    + [('abc', 'abc'), (' abc', 'abc'), ('1.5', '1.5'), ('1e3', '1e3'), ('9' * 30, '9' * 30), ('\u0661', '\u0661')]
    + [('\ud800', r'\ud800')]
    + [(value, None) for value in (None, True, False, 1.5, math.nan, math.inf, '', ' ', [1], {}, 1e30)],
)
def test_identifier(value, expected):
    read = coco_json.identifier(value)
    assert (read, type(read)) == (expected, type(expected))


@pytest.mark.parametrize('entry', [{}, {'id': 'a'}, {'id': 1.5}, {'id': True}, {'id': None}, [1], 'id', None])
def test_no_integer(entry):
    assert coco_json.integer(entry, 'id') is None


def test_integer():
    assert [coco_json.integer({'id': value}, 'id') for value in (-3, 5.0, '7')] == [-3, 5, 7]


def test_number():
    numbers = [2, 2.5, '2.5', True, None, 'x', math.nan, 'inf', 10**400, [1]]
    assert list(map(coco_json.number, numbers)) == [2, 2.5, 2.5] + [None] * 7


@pytest.mark.parametrize(
    ('height', 'width', 'size'),
    [
        (2, 3, (2, 3)),
        (0, 3, None),
        (2, -3, None),
        (2, 3.0, (2, 3)),
        ('2', '3', (2, 3)),
        (2, 3.5, None),
        (2**16, 2**15, None),
        (2**16, 2**15 - 1, ...),
    ],
)
def test_image_size(height, width, size):
    expected = (height, width) if size is ... else size  # None: not stated
    assert coco_json.image_size({'height': height, 'width': width}) == expected


def test_rle_of_every_kind_becomes_compressed_bytes():
    compressed = coco.encode(np.asfortranarray(MASK_HW))
    for counts in (
        COUNTS,
        list(map(str, COUNTS)),
        list(map(float, COUNTS)),
        compressed['counts'],
        compressed['counts'].decode(),
    ):
        rle = coco_json.checked_rle([2, '3'], counts, 2, 3)
        assert rle == compressed
        np.testing.assert_array_equal(coco.decode(rle), MASK_HW)


@pytest.mark.parametrize(
    ('size', 'counts', 'message'),
    [
        ([3, 2], COUNTS, r'its size is \[3, 2\], the image has \[2, 3\] px'),
        ([2, 3], [2, 3], 'its runs do not add up to the image'),
        ([2, 3], [2, -1, 5], 'its runs do not add up to the image'),
        ([2, 3], [2.5, 2.5, 1], 'its counts are not integers'),
        (['2', 'x'], COUNTS, r'its size is'),
        ([2, 3], [[6]], 'its counts|its runs do not add up to the image'),
        ([2, 3], '5', 'its runs do not add up to the image'),
        ([2, 3], '\x00', 'characters that are not RLE'),
    ],
)
def test_damaged_rle(size, counts, message):
    with pytest.raises(ValueError, match=message):
        coco_json.checked_rle(size, counts, 2, 3)


@pytest.mark.parametrize(
    ('height', 'width', 'runs'),
    [
        (5000, 4000, [1, 19_999_999]),  # 2^24 and more px in one run
        (5000, 4000, [16_777_217, 2_000_000, 1_222_783]),
        (46_340, 46_340, [1, 46_340**2 - 2, 1]),  # just below 2^31 px
        (1, 2**31 - 1, [0, 2**31 - 1]),
        (2**31 - 1, 1, [2**30, 2**30 - 1]),
        (32_768, 65_535, [2**24 + 1, 2**24 + 2, 2**24 + 3, 2**24 + 5, 32_768 * 65_535 - 2**26 - 11]),
    ],
)
def test_rle_of_large_images(height, width, runs):
    area = sum(runs[1::2])
    from_list = coco_json.checked_rle([height, width], runs, height, width)
    from_text = coco_json.checked_rle([height, width], from_list['counts'].decode(), height, width)
    assert from_list == from_text
    assert run_lengths(from_list['counts']).tolist() == runs
    assert int(coco.area(from_list)) == area
    for wrong in ([runs[0] + 1, *runs[1:]], [*runs[:-1], runs[-1] - 1], [*runs, 2**32]):
        with pytest.raises(ValueError, match='its runs do not add up to the image'):
            coco_json.checked_rle([height, width], wrong, height, width)


def test_polygons_become_one_mask():
    rle = coco_json.polygons_to_rle([[0, 0, 2, 0, 2, 2, 0, 2], [4, 0, 6, 0, 6, 2, 4, 2]], 4, 8)
    assert coco.decode(rle)[:2].tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]] * 2
    assert coco.area(rle) == 8


def test_polygon_that_is_cut_or_too_long():
    """Corners within three sides of the image are kept; the outline of many corners there may still be too long."""
    mask, area, warnings = coco_json.read_segmentation([[-20, 0, 2, 0, 2, 2, -20, 2]], 10, 20)
    assert (area, warnings) == (4, ())
    assert coco.decode(mask)[:2, :2].all()
    area, warnings = coco_json.read_segmentation([[-50, 0, 2, 0, 2, 2, -50, 2]], 10, 20)[1:]
    assert (area, warnings) == (4, (('polygon far outside its image, which was cut', ''),))
    zigzag = [coordinate for n in range(2000) for coordinate in (0, 0, 1400, n / 2)]
    with pytest.raises(InvalidExample, match='the outline of a polygon is longer than 4000000 px'):
        coco_json.read_segmentation([zigzag], 1000, 1000)
