"""labelme's JSON files: each kind of shape, where the image is, and what is damaged."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from samples import encoded, jpeg, smooth

from samjax.data.formats import labelme
from samjax.data.records import source
from samjax.errors import InvalidExample

HEIGHT, WIDTH = 12, 16


def as_png(values_HW):
    file = io.BytesIO()
    Image.fromarray(np.array(values_HW)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


def shape(points, shape_type='polygon', label='cat', **more):
    return {'label': label, 'points': points, 'group_id': None, 'shape_type': shape_type, 'flags': {}, **more}


def content(*shapes, **changes):
    fields = {
        'version': '5.4.1', 'flags': {}, 'shapes': list(shapes), 'imagePath': 'x.png', 'imageData': None,
        'imageHeight': HEIGHT, 'imageWidth': WIDTH,
    }  # fmt: skip
    return {key: value for key, value in {**fields, **changes}.items() if value is not KeyError}


def put(folder, *shapes, name='x', image=True, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        (folder / f'{name}.png').write_bytes(encoded(smooth(HEIGHT, WIDTH), '.png'))
    (folder / f'{name}.json').write_text(json.dumps(content(*shapes, **changes)))


def items(path):
    return [item for part in labelme.open_index(path).shards for item in part.items()]


def load(tmp_path, *shapes, **changes):
    put(tmp_path, *shapes, **changes)
    [item] = items(tmp_path)
    return pickle.loads(pickle.dumps(item)).load()


def decoded(annotated):
    return [coco.decode(rle) for rle in annotated.masks]


def box(top, left, bottom, right):
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[top:bottom, left:right] = 1
    return mask_HW


def assert_masks(annotated, *expected):
    assert annotated.skipped_masks == {}
    assert len(annotated.masks) == len(expected)
    for mask_HW, expected_HW in zip(decoded(annotated), expected, strict=True):
        np.testing.assert_array_equal(mask_HW, expected_HW)


SQUARE = [[2, 3], [9, 3], [9, 7], [2, 7]]


# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['polygon', None, ''])
def test_polygon(tmp_path, kind):
    annotated = load(tmp_path, shape(SQUARE, kind))
    assert annotated.size == (HEIGHT, WIDTH)
    assert_masks(annotated, box(3, 2, 7, 9))


def test_file_without_shape_type_is_of_an_old_version(tmp_path):
    old = {key: value for key, value in shape(SQUARE).items() if key in ('label', 'points')}
    assert_masks(load(tmp_path, old, imageHeight=KeyError, imageWidth=KeyError, flags=KeyError), box(3, 2, 7, 9))


@pytest.mark.parametrize('points', [[[2, 3], [9, 7]], [[9, 7], [2, 3]], [[2, 7], [9, 3]], SQUARE])
def test_rectangle_by_any_corners(tmp_path, points):
    assert_masks(load(tmp_path, shape(points, 'rectangle')), box(3, 2, 7, 9))


def test_circle(tmp_path):
    """Its centre and a point of it: the pixels whose centres are within the radius."""
    [mask_HW] = decoded(load(tmp_path, shape([[8, 6], [8, 1.5]], 'circle')))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    differ_HW = mask_HW != (np.hypot(y - 6, x - 8) <= 4.5)
    assert differ_HW.sum() <= 4


def test_mask_shape(tmp_path):
    """A PNG of the bounding box, whose last pixel is inclusive."""
    pixels = [[1, 0, 1], [0, 1, 1]]
    expected = box(0, 0, 0, 0)
    expected[4:6, 3:6] = pixels
    for values in (np.array(pixels, np.uint8), np.array(pixels, np.uint8) * 255, np.array(pixels, bool)):
        assert_masks(load(tmp_path, shape([[3, 4], [5, 5]], 'mask', mask=as_png(values))), expected)


def test_mask_shape_that_leaves_the_image(tmp_path):
    ones = np.ones((4, 5), np.uint8)
    assert_masks(load(tmp_path, shape([[-2, -1], [2, 2]], 'mask', mask=as_png(ones))), box(0, 0, 3, 3))
    assert_masks(load(tmp_path, shape([[14, 10], [18, 13]], 'mask', mask=as_png(ones))), box(10, 14, 12, 16))
    annotated = load(tmp_path, shape([[1e300, 0], [1e300, 3]], 'mask', mask=as_png(ones)))
    assert annotated.skipped_masks.counts == {'no pixels': 1}


def test_shapes_of_one_group_are_one_object(tmp_path):
    left, right = [[1, 1], [4, 3]], [[8, 1], [11, 3]]
    annotated = load(
        tmp_path,
        shape(left, 'rectangle', group_id=1),
        shape(right, 'rectangle', group_id=1),
        shape([[1, 6], [4, 8]], 'rectangle', group_id=1, label='dog'),
        shape([[6, 6], [9, 8]], 'rectangle', group_id=2),
        shape([[11, 6], [14, 8]], 'rectangle'),
        shape([[11, 9], [14, 11]], 'rectangle'),
    )
    both = box(1, 1, 3, 4) + box(1, 8, 3, 11)
    assert_masks(annotated, both, box(6, 1, 8, 4), box(6, 6, 8, 9), box(6, 11, 8, 14), box(9, 11, 11, 14))


@pytest.mark.parametrize(
    ('invalid', 'cause'),
    [
        (shape([[1, 1]], 'point'), 'point or line, which has no area'),
        (shape([[1, 1], [5, 5]], 'line'), 'point or line, which has no area'),
        (shape([[1, 1], [5, 5], [5, 9]], 'linestrip'), 'point or line, which has no area'),
        (shape([[1, 1], [5, 5]], 'points'), 'point or line, which has no area'),
        (shape([[1, 1], [5, 5]]), 'invalid polygon'),
        (shape([[1, 1], [5, 5]], 'polygon', label='__ignore__'), 'label that is ignored'),
        (shape([]), 'invalid points'),
        (shape(None), 'invalid points'),
        (shape([[1, 1], [5, float('nan')], [1, 5]]), 'invalid points'),
        (shape([[1, 1], [5, 'x'], [1, 5]]), 'invalid points'),
        (shape([[1, 1], [5, 5, 5], [1, 5]]), 'invalid points'),
        (shape([[1, 1], [10**400, 5], [1, 5]]), 'invalid points'),
        (shape([[90, 90], [95, 90], [95, 95]]), 'no pixels'),
        (shape([[3, 3], [3, 3]], 'circle'), 'no pixels'),
        (shape([[3, 3]], 'circle'), 'shape_type circle, which is not known'),
        (shape(SQUARE, 'cuboid'), 'shape_type cuboid, which is not known'),
        (shape(SQUARE, 'a\nb\0'), r'shape_type a b\x00, which is not known'),
        (shape(SQUARE, ['polygon']), "shape_type ['polygon'], which is not known"),
        (shape([[1, 1], [2, 2]], 'mask'), 'no mask'),
        (shape([[1, 1], [2, 2]], 'mask', mask='no base64!'), 'unreadable mask'),
        (shape([[1, 1], [2, 2]], 'mask', mask=base64.b64encode(b'no PNG').decode()), 'unreadable mask'),
        (3, 'invalid shape'),
        (None, 'invalid shape'),
    ],
)
def test_one_bad_shape_costs_one_mask(tmp_path, invalid, cause):
    annotated = load(tmp_path, invalid, shape(SQUARE))
    np.testing.assert_array_equal(decoded(annotated), [box(3, 2, 7, 9)])
    assert annotated.skipped_masks == {cause: (1, 'shape 0')}


# ---- the image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('image_path', ['../photos/a.png', '..\\photos\\a.png'])
def test_image_in_another_folder(tmp_path, image_path):
    put(tmp_path / 'labels', shape(SQUARE), image=False, imagePath=image_path)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/a.png').write_bytes(encoded(smooth(HEIGHT, WIDTH), '.png'))
    [item] = items(tmp_path)
    assert (item.name, item.location) == ('labels/x', 'labels/x.json')
    assert item.load().image == (tmp_path / 'photos/a.png').read_bytes()


def test_image_path_of_another_machine(tmp_path):
    put(tmp_path, shape(SQUARE), image=False, imagePath='C:\\Users\\me\\photo 1.png')
    (tmp_path / 'photo 1.png').write_bytes(encoded(smooth(HEIGHT, WIDTH), '.png'))
    [item] = items(tmp_path)
    assert item.load().image == (tmp_path / 'photo 1.png').read_bytes()


@pytest.mark.parametrize('prefix', ['', 'data:image/png;base64,'])
def test_embedded_image(tmp_path, prefix):
    data = encoded(smooth(HEIGHT, WIDTH), '.png')
    annotated = load(tmp_path, shape(SQUARE), image=False, imageData=prefix + base64.b64encode(data).decode())
    assert annotated.image == data
    assert_masks(annotated, box(3, 2, 7, 9))


@pytest.mark.parametrize(
    ('changes', 'cause'),
    [({}, 'no image'), ({'imageData': ''}, 'no image'), ({'imageData': '!'}, 'unreadable image'),
     ({'imagePath': 'a\0b'}, 'no image'), ({'imagePath': 3}, 'no image'), ({'imagePath': KeyError}, 'no image')],
)  # fmt: skip
def test_image_that_is_nowhere(tmp_path, changes, cause):
    with pytest.raises(InvalidExample) as error:
        load(tmp_path, shape(SQUARE), image=False, **changes)
    assert error.value.cause == cause


def test_size_of_an_image_that_exif_rotates(tmp_path):
    """labelme shows it upright, and old files do not state its size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path, shape(SQUARE), image=False, imageHeight=KeyError, imageWidth=KeyError, imagePath='x.jpg')
    (tmp_path / 'x.jpg').write_bytes(jpeg(smooth(WIDTH, HEIGHT), exif=exif))
    [item] = items(tmp_path)
    assert item.load().size == (HEIGHT, WIDTH)
    [example] = source.open_records(tmp_path, tmp_path / 'cache', 0.0)
    assert (example.image.height, example.image.width) == (HEIGHT, WIDTH)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_image_without_json_has_no_masks(tmp_path):
    put(tmp_path, shape(SQUARE))
    (tmp_path / 'y.png').write_bytes(encoded(smooth(HEIGHT, WIDTH), '.png'))
    index = labelme.open_index(tmp_path)
    assert index.num_annotated == 1
    first, second = (item for part in index.shards for item in part.items())
    assert (first.name, second.name) == ('x', 'y')
    assert (second.load().size, second.load().masks) == ((HEIGHT, WIDTH), [])


def test_single_file(tmp_path):
    put(tmp_path, shape(SQUARE))
    put(tmp_path, shape(SQUARE), name='y')
    index = labelme.open_index(tmp_path / 'y.json')
    assert [item.name for part in index.shards for item in part.items()] == ['y']
    [example] = source.open_records(tmp_path / 'y.json', tmp_path / 'cache', 0.0)
    np.testing.assert_array_equal(coco.decode(example.rles[0]), box(3, 2, 7, 9))


@pytest.mark.parametrize(
    'text', ['{}', '[]', '3', '{"version": "5"}', '{"shapes": {}, "version": "5"}', '{"shapes": []}']
)
def test_json_of_something_else(tmp_path, text):
    put(tmp_path)
    (tmp_path / 'x.json').write_text(text)
    assert labelme.open_index(tmp_path) is None


@pytest.mark.parametrize(('text', 'cause'), [('{"version', 'invalid JSON'), ('[' * 9999, 'invalid JSON'),
                                             ('{"camera": 1}', 'missing key'), ('3', 'missing key')])  # fmt: skip
def test_damaged_json_among_others(tmp_path, text, cause):
    put(tmp_path, shape(SQUARE))
    put(tmp_path, name='y')
    (tmp_path / 'y.json').write_text(text)
    (tmp_path / 'lonely.json').write_text('{"camera": 1}')
    index = labelme.open_index(tmp_path)
    _, damaged = (item for part in index.shards for item in part.items())
    with pytest.raises(InvalidExample) as error:
        damaged.load()
    assert (damaged.name, error.value.cause, index.num_annotated) == ('y', cause, 1)


def test_digest(tmp_path):
    put(tmp_path, shape(SQUARE))
    digests = [labelme.open_index(tmp_path).digest, labelme.open_index(tmp_path).digest]
    put(tmp_path, shape(SQUARE), shape(SQUARE))
    digests.append(labelme.open_index(tmp_path).digest)
    (tmp_path / 'x.png').write_bytes(encoded(smooth(HEIGHT, WIDTH + 1), '.png'))
    digests.append(labelme.open_index(tmp_path).digest)
    assert (digests[0] == digests[1], len(set(digests))) == (True, 3)


def test_image_and_jpeg_of_one_name(tmp_path):
    """x.json belongs to one of x.jpg and x.png: the first by name, the other has no masks."""
    put(tmp_path, shape(SQUARE))
    (tmp_path / 'x.jpg').write_bytes(jpeg(smooth(HEIGHT, WIDTH)))
    names = [(item.name, item.location) for item in items(tmp_path)]
    assert names == [('x', 'x.json'), ('x (x.png)', 'x.png')]
