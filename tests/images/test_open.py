"""Images are checked and made upright in one way."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from samples import encoded, jpeg, random_image, smooth

from samjax.errors import InvalidExample, SamjaxError
from samjax.images.encoded_image import SYMMETRY
from samjax.images.open import decode_image, image_size, open_image, read_image


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


def test_sixteen_bits_are_refused():
    data = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(data, 'PNG')
    with pytest.raises(InvalidExample) as error:
        decode_image(data.getvalue())
    assert error.value.cause == 'not 8 bits'
    assert error.value.detail.startswith('its pixels are 16-bit grey (I;16): save it with 8 bits per channel')


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
