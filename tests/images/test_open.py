"""Images are checked and made upright in one way."""

import io
import math
import re

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from samples import encoded, jpeg, png_of_16_bits, random_image, saved, smooth

from samjax.errors import InvalidExample, SamjaxError
from samjax.images.encoded_image import SYMMETRY
from samjax.images.open import DEFAULT, ImageOptions, decode_image, image_size, open_image, read_image, upright_rgb


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(smooth(20, 40), exif=exif)


@pytest.mark.parametrize('orientation', SYMMETRY)
def test_orientation_is_that_of_exif(orientation):
    data = rotated(orientation)
    expected_HW3 = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image_HW3 = decode_image(data)
    np.testing.assert_array_equal(image_HW3, expected_HW3)
    assert image_HW3.flags.c_contiguous
    assert image_HW3.flags.writeable
    assert image_size(data) == (20, 40)


def test_orientations_that_exif_does_not_know_count_as_1():
    assert open_image(rotated(9)).orientation == 1
    assert open_image(encoded(random_image(1))).orientation == 1


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
def test_all_colours_become_rgb_and_opacity_is_dropped(mode):
    image, data = smooth(20, 40).convert(mode), io.BytesIO()
    image.save(data, 'PNG', **({'transparency': bytes(range(256))} if mode == 'P' else {}))
    np.testing.assert_array_equal(decode_image(data.getvalue()), np.asarray(image.convert('RGB')))


def test_what_is_not_a_whole_image_is_refused():
    data = encoded(random_image(1))
    for wrong in (b'', b'text', data[: len(data) // 2]):
        with pytest.raises(InvalidExample) as error:
            open_image(wrong)
        assert error.value.cause == 'unreadable image'
    with pytest.raises(InvalidExample):
        image_size(b'text')


def refused(data, options=DEFAULT):
    with pytest.raises(InvalidExample) as error:
        decode_image(data, options)
    assert '0x' not in error.value.detail
    return error.value.cause, error.value.detail


def tiff(values, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, values, **options)
    return data.getvalue()


def random_values(*shape):
    return np.random.default_rng(0).integers(0, 5000, shape).astype(np.uint16)


RGB_TIFF = {'photometric': 'rgb'}
GREY, RGB, RGBA = random_values(7, 9, 1), random_values(7, 9, 3), random_values(7, 9, 4)
DEEP = {
    'grey PNG': (png_of_16_bits(GREY[..., 0]), GREY),
    'grey PNG with opacity': (png_of_16_bits(np.repeat(GREY, 2, 2)), GREY),
    'RGB PNG': (png_of_16_bits(RGB), RGB),
    'RGBA PNG': (png_of_16_bits(RGBA), RGBA),
    'grey TIFF': (tiff(GREY[..., 0]), GREY),
    'grey TIFF, most significant byte first': (tiff(GREY[..., 0], byteorder='>'), GREY),
    'RGB TIFF': (tiff(RGB, **RGB_TIFF), RGB),
    'RGB TIFF, most significant byte first': (tiff(RGB, byteorder='>', **RGB_TIFF), RGB),
    'RGBA TIFF': (tiff(RGBA, extrasamples=['unassalpha'], **RGB_TIFF), RGBA),
    '32-bit integers': (tiff(GREY[..., 0].astype(np.int32)), GREY),
    'floating point': (tiff(GREY[..., 0].astype(np.float32)), GREY),
}


@pytest.mark.parametrize('name', DEEP)
def test_more_than_8_bits_are_refused_or_scaled_by_the_range_that_is_given(name):
    data, values_HWC = DEEP[name]
    cause, detail = refused(data)
    assert cause == 'not 8 bits'
    assert re.match('its pixels are (16|32)-bit .*: save it with 8 bits per channel, scaled as it should look', detail)
    opened = open_image(data, ImageOptions(bit_depth_range=(1000, 4000)))
    assert opened.is_scaled
    image_HW3 = upright_rgb(opened.image, 1)
    expected_HW3 = np.clip(np.rint((values_HWC[..., :3] - 1000.0) / 3000 * 255), 0, 255) * np.ones(3)
    np.testing.assert_allclose(image_HW3, expected_HW3, rtol=0, atol=1)
    assert image_HW3.max() == 255
    assert image_HW3.min() == 0


@pytest.mark.parametrize(
    ('data', 'cause', 'detail'),
    [
        (
            tiff(random_values(3, 7, 9), planarconfig='separate', **RGB_TIFF),
            'not 8 bits',
            'its colours are 16-bit planes',
        ),
        (tiff(np.zeros((7, 9), np.int8)), 'not 8 bits', 'its pixels are signed 8-bit integers'),
        (
            tiff(np.zeros((7, 9, 3), np.float32), **RGB_TIFF),
            'unreadable image',
            'it is a damaged TIFF, or one of a kind',
        ),
        (tiff(np.full((7, 9), np.nan, np.float32)), 'not 8 bits', 'it has values that are not finite'),
        (b'', 'unreadable image', 'it is empty'),
        (b'text', 'unreadable image', 'it is no JPEG, PNG, WebP, BMP, TIFF or GIF file'),
    ],
)
def test_what_no_range_makes_readable_is_refused(data, cause, detail):
    assert refused(data, ImageOptions(bit_depth_range=(0, 1)))[0] == cause
    assert refused(data, ImageOptions(bit_depth_range=(0, 1)))[1].startswith(detail)


def test_the_range_leaves_8_bits_alone():
    data = encoded(random_image(1), '.png')
    opened = open_image(data, ImageOptions(bit_depth_range=(0, 4095)))
    assert not opened.is_scaled
    np.testing.assert_array_equal(upright_rgb(opened.image, 1), np.asarray(random_image(1)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'bit_depth_range': (0,)}, r'bit_depth_range is \(0,\): give two numbers'),
        ({'bit_depth_range': (5, 5)}, 'give two numbers'),
        ({'bit_depth_range': (0, math.inf)}, 'give two numbers'),
        ({'max_pixels': 0}, 'max_pixels is 0: give a number from 1 to 2147483647'),
        ({'max_pixels': 2**31}, 'give a number'),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(SamjaxError, match=message):
        ImageOptions(**options)


@pytest.mark.parametrize('image_format', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_files_of_several_images_are_refused(image_format):
    first, *others = (random_image(number) for number in range(3))
    data = saved(first, image_format, save_all=True, append_images=others)
    assert refused(data) == ('several images in a file', 'it holds 3 images: save each as a file of its own')
    assert decode_image(saved(first, image_format, save_all=True)).shape == (24, 40, 3)


def test_previews_and_smaller_versions_do_not_count():
    image, half = random_image(1), random_image(1, 12, 20)
    stereo = saved(image, 'MPO', save_all=True, append_images=[half])
    np.testing.assert_array_equal(decode_image(stereo), decode_image(encoded(image, '.jpg')))
    pyramid = io.BytesIO()
    with tifffile.TiffWriter(pyramid) as writer:
        writer.write(np.asarray(image), photometric='rgb')
        writer.write(np.asarray(half), photometric='rgb', subfiletype=1)
    np.testing.assert_array_equal(decode_image(pyramid.getvalue()), np.asarray(image))


def test_limit_of_pixels_is_an_option_and_pillow_keeps_its_own():
    data, limit = encoded(random_image(1)), Image.MAX_IMAGE_PIXELS
    options = ImageOptions(max_pixels=24 * 40 - 1)
    expected = 'it has 24 x 40 px, more than 959: shrink it, or raise --max-pixels or data.max_pixels'
    assert refused(data, options) == ('too many pixels', expected)
    assert decode_image(data, ImageOptions(max_pixels=24 * 40)).shape == (24, 40, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_read_image_names_the_file(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(rotated(6))
    assert read_image(str(tmp_path / 'x.jpg')).shape == (40, 20, 3)
    (tmp_path / 'x.jpg').write_bytes(b'text')
    for file, message in (
        ('y.jpg', 'y.jpg does not exist: name an image file'),
        ('.', r' cannot be read \(Is a directory\): name another file'),
        ('x.jpg', r'x.jpg cannot be used, unreadable image \(.*\): name another file'),
    ):
        with pytest.raises(SamjaxError, match=message):
            read_image(tmp_path / file)


def test_every_byte_of_a_png_is_checked():
    """pillow alone shows other pixels for some of these files."""
    data = encoded(random_image(1, 9, 7), '.png')
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 4
        with pytest.raises(InvalidExample) as error:
            open_image(bytes(changed))
        assert error.value.cause == 'unreadable image'
    for size in range(len(data)):
        with pytest.raises(InvalidExample):
            open_image(data[:size])
