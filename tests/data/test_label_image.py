"""Mask files: smoothed objects are one object, label maps are read exactly, and what is neither is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter
from PIL.Image import Resampling
from pycocotools import mask as coco

from samjax.data.formats.label_image import BINARY, COLOURS, EMPTY, LABELS, SOFT, read_mask
from samjax.errors import InvalidExample

FILTERS = ('BOX', 'BILINEAR', 'HAMMING', 'BICUBIC', 'LANCZOS')


def save(tmp_path, values, suffix='.png', **options):
    """The path of an image of an array, or of a pillow image."""
    path = tmp_path / f'mask{suffix}'
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    image.save(path, **options)
    return str(path)


def uint8(values):
    return np.array(values, np.uint8)


def masks(picture):
    return [coco.decode(rle).astype(bool) for rle in picture.rles]


def refused(file, kind='auto', **options):
    with pytest.raises(InvalidExample) as error:
        read_mask(file, kind, **options)
    assert error.value.detail.startswith(file)
    assert ' at 0x' not in error.value.detail
    return error.value


def disk(size, y=0.45, x=0.5, radius=0.3, width=None):
    """bool (size, size or width); centre and radius relative to the size."""
    rows, columns = np.mgrid[:size, : width or size]
    return (rows - y * size) ** 2 + (columns - x * size) ** 2 < (radius * size) ** 2


def shapes(size):
    """Binary pictures of a size in px: convex, with a hole, touching the edge, thin, in pieces."""
    ring = disk(size) & ~disk(size, radius=0.12)
    box = np.zeros((size, size), bool)
    box[size // 5 + 1 : size // 2, size // 4 + 1 :] = True
    bar = np.zeros((size, size), bool)
    for i in range(size // 8, 7 * size // 8):
        bar[i, max(0, i - size // 10) : i + size // 10] = True
    return [disk(size), ring, box, bar, disk(size, 0.2, 0.2, 0.15) | disk(size, 0.7, 0.65, 0.2)]


def is_close(mask_HW, true_HW, px):
    """Whether they differ only within `px` of the outline of one."""
    near_HW = np.asarray(Image.fromarray(true_HW).convert('L').filter(ImageFilter.MaxFilter(2 * px + 1))) > 0
    inner_HW = np.asarray(Image.fromarray(true_HW).convert('L').filter(ImageFilter.MinFilter(2 * px + 1))) > 0
    return not (mask_HW & ~near_HW).any() and not (inner_HW & ~mask_HW).any()


# ---- one object with soft edges --------------------------------------------------------------------------------------


def test_soft_edges_of_four_levels(tmp_path):
    """A disk drawn at twice the size."""
    big_HW = disk(512, 0.45, 0.51, 0.27) * uint8(255)
    values_HW = np.asarray(Image.fromarray(big_HW).resize((256, 256), Resampling.BOX))
    assert np.unique(values_HW).tolist() == [0, 64, 128, 192, 255]
    picture = read_mask(save(tmp_path, values_HW))
    assert (picture.size, picture.read_as, picture.skipped_masks, picture.warnings) == ((256, 256), SOFT, [], [])
    (mask_HW,) = masks(picture)
    np.testing.assert_array_equal(mask_HW, values_HW >= 128)


@pytest.mark.parametrize('size', [24, 60, 131])
@pytest.mark.parametrize('name', FILTERS)
def test_reduced(tmp_path, name, size):
    for number, (factor, level) in enumerate([(2, 255), (3, 128), (4, 200), (8, 254), (2, 100)]):
        big_HW = shapes(size * factor)[number]
        image = Image.fromarray(big_HW * uint8(level)).resize((size, size), Resampling[name])
        picture = read_mask(save(tmp_path, image))
        assert picture.read_as == SOFT
        assert picture.skipped_masks == []
        true_HW = big_HW.reshape(size, factor, size, factor).mean((1, 3)) >= 0.5
        assert is_close(masks(picture)[0], true_HW, 1)


@pytest.mark.parametrize('name', FILTERS[1:])
def test_enlarged(tmp_path, name):
    for number, (small, size) in enumerate([(20, 57), (40, 100), (64, 200), (50, 333), (60, 480)]):
        true_HW = shapes(small)[number]
        image = Image.fromarray(true_HW * uint8(255)).resize((size, size), Resampling[name])
        picture = read_mask(save(tmp_path, image))
        assert picture.read_as == SOFT
        nearest_HW = np.asarray(Image.fromarray(true_HW).resize((size, size), Resampling.NEAREST))
        assert is_close(masks(picture)[0], nearest_HW, size // small + 1)


@pytest.mark.parametrize('radius', [0.5, 1, 2.5, 6])
@pytest.mark.parametrize('level', [255, 254, 200, 128])
def test_blurred(tmp_path, radius, level):
    for true_HW in shapes(180):
        image = Image.fromarray(true_HW * uint8(level)).filter(ImageFilter.GaussianBlur(radius))
        picture = read_mask(save(tmp_path, image))
        assert picture.read_as == SOFT
        assert is_close(masks(picture)[0], true_HW, 1 + round(radius))


@pytest.mark.parametrize('quality', [60, 75, 90, 97])
@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('level', [255, 200])
def test_compressed(tmp_path, quality, suffix, level):
    """Also as PNG: a JPEG that was converted."""
    for true_HW in shapes(128):
        file = io.BytesIO()
        Image.fromarray(true_HW * uint8(level)).save(file, 'JPEG', quality=quality)
        if suffix == '.jpg':
            path = str(tmp_path / 'mask.jpg')
            (tmp_path / 'mask.jpg').write_bytes(file.getvalue())
        else:
            path = save(tmp_path, Image.open(file))
        picture = read_mask(path)
        assert picture.read_as in (SOFT, BINARY)
        assert is_close(masks(picture)[0], true_HW, 1)


@pytest.mark.parametrize('colour', [(255, 255, 255), (255, 0, 0), (0, 128, 0), (250, 120, 30)])
@pytest.mark.parametrize('name', ['BOX', 'LANCZOS'])
def test_soft_edges_in_colour(tmp_path, colour, name):
    big_HW = disk(160)
    image = Image.fromarray(big_HW[..., None] * uint8(colour)).resize((80, 80), Resampling[name])
    picture = read_mask(save(tmp_path, image))
    assert picture.read_as == SOFT
    assert is_close(masks(picture)[0], big_HW[::2, ::2], 1)
    image.putalpha(255)
    assert read_mask(save(tmp_path, image)).read_as == SOFT


def test_soft_opacity_of_one_colour(tmp_path):
    pixels_HW4 = np.zeros((40, 40, 4), np.uint8)
    opacity_HW = np.asarray(Image.fromarray(disk(80) * uint8(255)).resize((40, 40), Resampling.BOX))
    pixels_HW4[opacity_HW > 0] = [200, 30, 30, 0]
    pixels_HW4[..., 3] = opacity_HW
    (mask_HW,) = masks(read_mask(save(tmp_path, pixels_HW4)))
    np.testing.assert_array_equal(mask_HW, opacity_HW >= 128)


def test_soft_edges_in_sixteen_bits_and_in_grey_palettes(tmp_path):
    values_HW = np.asarray(Image.fromarray(disk(90) * uint8(255)).filter(ImageFilter.GaussianBlur(1.5)))
    picture = read_mask(save(tmp_path, values_HW.astype(np.uint16) * 257))
    assert picture.read_as == SOFT
    np.testing.assert_array_equal(masks(picture)[0], values_HW >= 128)
    picture = read_mask(save(tmp_path, Image.fromarray(values_HW).convert('P'), '.gif'))
    assert picture.read_as == SOFT
    np.testing.assert_array_equal(masks(picture)[0], values_HW >= 128)


def test_a_single_level_in_between_along_edges_is_ambiguous(tmp_path):
    values_HW = np.zeros((40, 40), np.uint8)
    values_HW[9:31, 9:31] = 128
    values_HW[10:30, 10:30] = 255
    picture = read_mask(save(tmp_path, values_HW))
    assert picture.read_as == SOFT
    assert picture.warnings == [
        'could also be a label map with thin objects (mask_kind = labels), is read as one object'
    ]
    first, second = masks(read_mask(save(tmp_path, values_HW), 'labels'))
    assert (first.sum(), second.sum()) == (22**2 - 400, 400)


def test_blur_as_wide_as_the_object(tmp_path):
    image = Image.fromarray(disk(40) * uint8(255)).filter(ImageFilter.GaussianBlur(4))
    assert read_mask(save(tmp_path, image)).warnings == [
        'more than 40 % of the pixels of a soft mask are between the background and the object'
    ]


# ---- label maps ------------------------------------------------------------------------------------------------------


def check_exact(tmp_path, values_HW, numbers=None, **options):
    """Each number is an object of exactly its pixels."""
    picture = read_mask(save(tmp_path, values_HW, **options))
    numbers = [number for number in np.unique(values_HW) if number] if numbers is None else numbers
    assert picture.read_as == LABELS
    assert len(picture.rles) == len(numbers)
    for mask_HW, number in zip(masks(picture), numbers, strict=True):
        np.testing.assert_array_equal(mask_HW, values_HW == number)
    return picture


SPREAD = [(80, 160, 240), (85, 170, 255), (64, 128, 192), (64, 128, 192, 255), (100, 200, 255), (127, 255), (50, 250)]


@pytest.mark.parametrize('numbers', [*SPREAD, (1, 2, 3), (1, 2), (253, 254), (20, 240, 250)])
@pytest.mark.parametrize('size', [24, 100])
def test_few_large_objects(tmp_path, numbers, size):
    """Side by side, apart on background, and nested in rings of 3 px and of 10 px."""
    bands_HW = np.zeros((size, size), np.uint8)
    apart_HW, thin_HW, thick_HW = bands_HW.copy(), bands_HW.copy(), bands_HW.copy()
    for n, number in enumerate(numbers):
        bands_HW[:, n * size // len(numbers) : (n + 1) * size // len(numbers)] = number
        apart_HW[disk(size, (n // 2 + 0.5) / 2, (n % 2 + 0.5) / 2, 0.2)] = number
        thin_HW[disk(size, radius=(3 * (len(numbers) - n) + 0.5) / size)] = number
        thick_HW[disk(size, radius=0.1 * (len(numbers) - n))] = number
    for values_HW in (bands_HW, apart_HW, thin_HW, thick_HW):
        assert check_exact(tmp_path, values_HW).warnings == []


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('numbering', ['consecutive', 'spread', 'random'])
def test_cells_without_gaps(tmp_path, seed, numbering):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 30))
    height, width = rng.integers(40, 120, 2)
    rows, columns = np.mgrid[:height, :width]
    centres = rng.uniform(0, 1, (count, 2)) * [height, width]
    cell_HW = ((rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2).argmin(-1)
    numbers = {
        'consecutive': np.arange(1, count + 1),
        'spread': np.linspace(0, 250, count + 1).astype(int)[1:],
        'random': rng.choice(np.arange(1, 255), count, replace=False),
    }[numbering]
    numbers = np.where(rng.uniform(size=count) < 0.3, 0, numbers) if seed % 2 else numbers
    check_exact(tmp_path, uint8(numbers[cell_HW]))


@pytest.mark.parametrize('numbers', [(50, 100, 150, 200, 250), (1, 2, 3, 4, 5), (240, 30, 180, 90, 120)])
@pytest.mark.parametrize('width', [1, 2, 3])
def test_thin_lines(tmp_path, numbers, width):
    """Poles and wires that cross."""
    values_HW = np.zeros((90, 120), np.uint8)
    for n, number in enumerate(numbers):
        values_HW[:, 10 + 20 * n : 10 + 20 * n + width] = number
        for x in range(120):
            y = 10 * n + x // 3
            values_HW[y : y + width, x] = number
    check_exact(tmp_path, values_HW)


@pytest.mark.parametrize('numbers', [(1, 2, 3), (1,), (15,), (1, 20), (7, 11, 26)])
def test_void_lines(tmp_path, numbers):
    """As in VOC: 255 along outlines."""
    values_HW = np.zeros((80, 100), np.uint8)
    for n, number in enumerate(numbers):
        values_HW[disk(80, 0.5, 0.3 + 0.3 * n, 0.24, 100)] = number
    image = Image.fromarray(values_HW)
    low_HW, high_HW = image.filter(ImageFilter.MinFilter(3)), image.filter(ImageFilter.MaxFilter(3))
    values_HW[np.asarray(low_HW) < np.asarray(high_HW)] = 255
    picture = check_exact(tmp_path, values_HW, numbers)
    assert (picture.skipped_masks, picture.warnings) == (['void (value 255)'], [])


@pytest.mark.parametrize(
    ('numbers', 'is_void'),
    [
        ((3, 7, 255), True),
        ((15, 255), True),
        ((1, 255), True),
        ((2, 255), True),
        ((1, 2, 255), True),
        (range(1, 20), False),
        ((*range(1, 20), 255), True),
        (range(1, 256), False),
        ((1, 110, 150, 255), True),
        ((85, 170, 255), False),
        ((12, 25, 51, 76, 102, 127, 153, 178, 204, 229, 255), False),
        ((255,), False),
    ],
)
def test_void_or_object(tmp_path, numbers, is_void):
    values_HW = np.repeat(np.repeat(uint8(list(numbers))[None], 12, 0), 6, 1)
    for kind in ('auto', 'labels'):
        picture = read_mask(save(tmp_path, values_HW), kind)
        assert len(picture.rles) == len(numbers) - is_void
        assert picture.skipped_masks == ['void (value 255)'] * is_void


def test_void_of_a_palette(tmp_path):
    """255 is void there, and the colours do not matter."""
    image = Image.fromarray(np.repeat(uint8([[0, 85, 170, 255]]), 9, 1))
    image.putpalette([*range(3), *[128, 0, 0] * 255])
    picture = read_mask(save(tmp_path, image))
    assert (len(picture.rles), picture.skipped_masks) == (2, ['void (value 255)'])


def test_sixteen_bits(tmp_path):
    """Class * 1000 + instance, as in Cityscapes; numbers that are close to each other for their size."""
    values_HW = np.zeros((40, 90), np.uint16)
    for n, number in enumerate((24001, 24002, 26000, 26001, 33004)):
        values_HW[5:35, 15 * n : 15 * n + 12] = number
    values_HW[38:] = 7
    check_exact(tmp_path, values_HW)
    values_HW[:2] = 65535
    assert check_exact(tmp_path, values_HW).warnings == ['value 65535 is read as an object, and may be void']
    check_exact(tmp_path, values_HW.astype(np.int32) * 3, suffix='.tif')
    check_exact(tmp_path, (values_HW % 999).astype(np.float32), suffix='.tif')


def test_thousands_of_objects(tmp_path):
    numbers_hw = np.random.default_rng(0).permutation(np.arange(1, 1501)).reshape(30, 50)
    values_HW = numbers_hw.repeat(3, 0).repeat(4, 1)
    pixels_HW3 = uint8(np.stack([values_HW % 256, values_HW // 256, values_HW % 7], -1))
    for values in (values_HW.astype(np.uint16), (50 * values_HW).astype(np.int32), pixels_HW3):
        picture = read_mask(save(tmp_path, values, '.tif'))
        assert [int(coco.area(rle)) for rle in picture.rles] == [12] * 1500
        assert picture.warnings == []


@pytest.mark.parametrize(
    'colours', [[(255, 0, 0), (0, 255, 0)], [(128, 0, 0), (64, 0, 0), (192, 0, 0)], [(255, 0, 0), (0, 1, 0)]]
)
def test_colours(tmp_path, colours):
    pixels_HW3 = np.zeros((40, 60, 3), np.uint8)
    for n, colour in enumerate(colours):
        pixels_HW3[5:35, 20 * n : 20 * n + 18] = colour
    picture = read_mask(save(tmp_path, pixels_HW3))
    assert (picture.read_as, picture.warnings) == (COLOURS, [])
    assert [mask_HW.sum() for mask_HW in masks(picture)] == [30 * 18] * len(colours)


@pytest.mark.parametrize('name', ['BOX', 'BILINEAR', 'BICUBIC', 'LANCZOS'])
@pytest.mark.parametrize('size', [(90, 70), (230, 310)])
@pytest.mark.parametrize(
    'values', [(80, 160, 240), (10, 100, 30), ((200, 0, 0), (0, 200, 0), (90, 90, 250)), (5, 9, 14)]
)
def test_label_map_resized_with_interpolation(tmp_path, name, size, values):
    if name == 'BOX' and size[0] > 180:
        return
    large_HWC = np.zeros((140, 180, *np.shape(values[0])), np.uint8)
    for n, value in enumerate(values):
        large_HWC[disk(140, 0.3 + 0.2 * n, 0.4 + 0.25 * n, 0.28, 180)] = value
    picture = read_mask(save(tmp_path, Image.fromarray(large_HWC).resize(size, Resampling[name])))
    assert picture.read_as in (LABELS, COLOURS)
    assert picture.warnings == [
        'values in between along the edges of objects, as if a label map was resized with interpolation (use nearest '
        'neighbour) or an object was smoothed (mask_kind = soft)'
    ]
    nearest = read_mask(save(tmp_path, Image.fromarray(large_HWC).resize(size, Resampling.NEAREST)))
    assert nearest.warnings == []


# ---- options ---------------------------------------------------------------------------------------------------------


def test_kinds(tmp_path):
    values = [[0, 9, 9], [0, 85, 255], [0, 255, 255]]
    file = save(tmp_path, uint8(values))
    assert [mask.tolist() for mask in masks(read_mask(file, 'binary'))] == [(uint8(values) > 0).tolist()]
    assert [mask.tolist() for mask in masks(read_mask(file, 'soft'))] == [(uint8(values) > 127).tolist()]
    assert [mask.sum() for mask in masks(read_mask(file, 'labels'))] == [2, 1]
    assert read_mask(save(tmp_path, uint8([[0, 0]])), 'binary').read_as == EMPTY


def test_kinds_of_floats_colours_and_palettes(tmp_path):
    file = save(tmp_path, np.array([[0, 0.1, 0.4], [0.5, 0.6, 0.9]], np.float32), '.tif')
    assert masks(read_mask(file, 'soft'))[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert masks(read_mask(file, 'binary'))[0].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert refused(file, 'labels').cause == 'fractional labels'
    file = save(tmp_path, uint8([[[0, 0, 0], [9, 0, 9], [0, 200, 0], [0, 0, 99]]]))
    assert masks(read_mask(file, 'soft'))[0].tolist() == [[0, 0, 1, 0]]
    assert masks(read_mask(file, 'binary'))[0].tolist() == [[0, 1, 1, 1]]
    image = Image.fromarray(uint8([[0, 1, 2]]))
    image.putpalette([0, 0, 0, 99, 0, 0, 200, 0, 0])
    assert masks(read_mask(save(tmp_path, image), 'soft'))[0].tolist() == [[0, 0, 1]]


def test_jpeg_of_each_kind(tmp_path):
    true_HW = disk(96)
    file = save(tmp_path, true_HW * uint8(255), '.jpg')
    for kind in ('binary', 'soft'):
        assert is_close(masks(read_mask(file, kind))[0], true_HW, 1)
    assert refused(file, 'labels').cause == 'unclear mask'


def test_file_of_one_object(tmp_path):
    """Faint edges do not widen it; parts with numbers are united, with a warning."""
    values_HW = np.asarray(Image.fromarray(disk(60) * uint8(255)).filter(ImageFilter.GaussianBlur(2)))
    picture = read_mask(save(tmp_path, values_HW), one_object=True)
    np.testing.assert_array_equal(masks(picture)[0], values_HW >= 128)
    parts_HW = np.repeat(uint8([[0] * 5, [0, 1, 2, 1, 0], [0] * 5]), 6, 0).repeat(6, 1)
    for factor in (1, 100):
        picture = read_mask(save(tmp_path, factor * parts_HW), one_object=True)
        assert masks(picture)[0].sum() == 3 * 36
        assert picture.warnings == ['several values in the file of one object, are read as one']
        assert len(read_mask(save(tmp_path, factor * parts_HW), 'labels', one_object=True).rles) == 2


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['auto', 'labels', 'binary'])
def test_negative_labels(tmp_path, kind):
    for dtype in (np.int32, np.float32):
        error = refused(save(tmp_path, np.array([[0, -1, 2], [-7, 0, 1]], dtype), '.tif'), kind)
        assert error.cause == 'negative labels'
        assert 'has -7, -1: number objects from 1' in error.detail


def test_fractions_and_what_is_not_finite(tmp_path):
    error = refused(save(tmp_path, np.array([[0, 1.5], [2, 0.25]], np.float32), '.tif'))
    assert error.cause == 'fractional labels'
    assert 'has 0.25, 1.5: save integers' in error.detail
    for value in (np.nan, np.inf):
        file = save(tmp_path, np.array([[0, value]], np.float32), '.tif')
        assert refused(file).cause == 'labels that are not finite'
    assert refused(save(tmp_path, np.array([[0, 2.0**25]], np.float32), '.tif')).cause == 'fractional labels'


def photograph(size=160):
    """uint8 (size, size, 3): shading, objects and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    pixels_HW3 = 90 + 60 * np.sin(rows / 30)[..., None] + 0.4 * columns[..., None] + 50 * disk(size)[..., None]
    return uint8(np.clip(pixels_HW3 + rng.normal(0, 6, (size, size, 3)), 0, 255))


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_photograph(tmp_path, mode, suffix):
    error = refused(save(tmp_path, Image.fromarray(photograph()).convert(mode), suffix))
    assert error.cause == 'unclear mask'


def test_noise_of_many_colours(tmp_path):
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for kind in ('auto', 'labels'):
        assert 'different colours' in refused(save(tmp_path, pixels_HW3), kind).detail
    assert len(read_mask(save(tmp_path, pixels_HW3), 'binary').rles) == 1


@pytest.mark.parametrize(
    'values', [(80, 160, 240), (60, 250), ((255, 0, 0), (0, 255, 0)), ((255, 0, 0), (255, 255, 0))]
)
def test_jpeg_of_several_objects(tmp_path, values):
    pixels_HWC = np.zeros((96, 160, *np.shape(values[0])), np.uint8)
    for n, value in enumerate(values):
        pixels_HWC[20:80, 50 * n + 8 : 50 * n + 45] = value
    error = refused(save(tmp_path, pixels_HWC, '.jpg', quality=85))
    assert error.cause == 'unclear mask'
    assert 'is a JPEG, whose compression mixes' in error.detail


@pytest.mark.parametrize('suffix', ['.png', '.gif', '.tif', '.webp'])
def test_several_pictures(tmp_path, suffix):
    first, second = (Image.fromarray(disk(32, x=x) * uint8(255)) for x in (0.3, 0.6))
    file = save(tmp_path, first, suffix, save_all=True, append_images=[second])
    error = refused(file)
    assert (error.cause, error.detail) == ('several images in a file', f'{file} has 2 images: save one file per object')


def test_sixteen_bit_colour(tmp_path):
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0)
    pixels = b'\0' + np.arange(6, dtype='>u2').tobytes()
    path = tmp_path / 'mask.png'
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')
    )
    error = refused(str(path))
    assert error.cause == 'not 8 bits'
    assert '16-bit RGB' in error.detail


def test_too_many_pixels(tmp_path):
    file = save(tmp_path, uint8([[0, 1, 1]]))
    assert len(read_mask(file, max_pixels=3).rles) == 1
    error = refused(file, max_pixels=2)
    assert error.cause == 'too many pixels'
    assert '1 x 3 px, more than 2' in error.detail


@pytest.mark.parametrize('content', [b'', b'text', b'II*\0damaged', b'\x89PNG\r\n\x1a\n' + b'x' * 40])
def test_damaged(tmp_path, content):
    path = tmp_path / 'mask.png'
    path.write_bytes(content)
    assert refused(str(path)).cause == 'unreadable mask'
    assert refused(str(tmp_path / 'missing.png')).cause == 'unreadable mask'


def test_every_byte_of_a_png_is_checked(tmp_path):
    """pillow alone shows other numbers for some of these files."""
    labels_HW = np.random.default_rng(0).integers(0, 4, (9, 7), np.uint8)
    file = tmp_path / 'x.png'
    Image.fromarray(labels_HW).save(file)
    data = file.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 4
        file.write_bytes(changed)
        with pytest.raises(InvalidExample) as error:
            read_mask(str(file))
        assert error.value.cause == 'unreadable mask'
