"""Images decoded as far as needed, upright, whatever their colours are stored as."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps
from samples import jpeg, smooth

from samjax.images.encoded_image import SYMMETRY, EncodedImage, apply_symmetry


def test_apply_symmetry_is_each_symmetry_of_the_square_once():
    x_HW = np.array([[1, 2], [3, 4]])
    seen = [apply_symmetry(x_HW, symmetry).tolist() for symmetry in range(8)]
    assert seen[:3] == [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]]]
    assert seen[4] == [[1, 3], [2, 4]]
    assert len({str(x) for x in seen}) == 8


@pytest.mark.parametrize('orientation', SYMMETRY)
def test_orientation_is_that_of_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(smooth(48, 80), exif=exif)
    expected_HW3 = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = EncodedImage.from_bytes(data, orientation)
    assert (image.height, image.width) == expected_HW3.shape[:2]
    np.testing.assert_array_equal(image.pixels(), expected_HW3)
    low_HW3 = image.at_least(image.height // 2, image.width // 2)
    assert low_HW3.shape == (image.height // 2, image.width // 2, 3)
    assert abs(low_HW3.astype(int) - expected_HW3[::2, ::2]).max() < 12  # a smooth image


@pytest.mark.parametrize(
    ('wanted', 'given'),
    [((480, 800), (480, 800)), ((241, 400), (480, 800)), ((240, 400), (240, 400)), ((100, 100), (120, 200)),
     ((1, 1), (60, 100)), ((900, 900), (480, 800))],
)  # fmt: skip
def test_jpeg_is_decoded_at_the_smallest_scale_that_is_enough(wanted, given):
    image = EncodedImage.from_bytes(jpeg(smooth(480, 800)))
    assert image.at_least(*wanted).shape[:2] == given
    assert image.pixels().shape == (480, 800, 3)  # the small image is not kept


def test_png_and_arrays_give_all_pixels():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, 'PNG')
    for image in (EncodedImage.from_bytes(data.getvalue()), EncodedImage.from_array(image_HW3)):
        np.testing.assert_array_equal(image.at_least(5, 5), image_HW3)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).pixels(), image_HW3)


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGB'])
def test_any_colours_become_rgb(mode):
    image = EncodedImage.from_bytes(jpeg(smooth(16, 16).convert(mode)))
    expected_HW3 = np.asarray(smooth(16, 16).convert(mode).convert('RGB')).astype(int)
    assert image.pixels().shape == (16, 16, 3)
    assert abs(image.pixels() - expected_HW3).mean() < 6
