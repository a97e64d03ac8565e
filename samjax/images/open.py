"""Image files of any origin, checked: whole, a single image, 8 bits per channel, rotated as EXIF says."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax.errors import InvalidExample, SamjaxError, reason
from samjax.images.encoded_image import SYMMETRY, apply_symmetry
from samjax.images.file import MAX_PIXELS, check_png, num_images, open_file
from samjax.storage import os_errors

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif')  # of their files
JPEG_SUFFIXES = SUFFIXES[:4]
EIGHT_BIT = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')  # modes
ORIENTATION = 0x0112  # EXIF's tag
# Tags of TIFF
BITS_PER_SAMPLE = 258
PLANAR_CONFIGURATION = 284
SAMPLE_FORMAT = 339
TIFF_MARKS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

EIGHT_BITS_REMEDY = (
    'save it with 8 bits per channel, scaled as it should look, or give the values that are black and white '
    '(--bit-depth-range LOW,HIGH or data.bit_depth_range)'
)


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """What every reader of images does with files that cannot be read without a decision.

    Raises:
        SamjaxError: the range or the limit makes no sense.
    """

    bit_depth_range: tuple[float, ...] = ()  # (low, high): values that become 0 and 255 in an image of more than 8
    # bits per channel, the ones between linearly, the ones outside clipped; (): such images are refused
    max_pixels: int = MAX_PIXELS  # of an image, height x width; larger ones are refused

    def __post_init__(self):
        limits = self.bit_depth_range
        if limits and not (len(limits) == 2 and all(map(math.isfinite, limits)) and limits[0] < limits[1]):
            raise SamjaxError(
                f'bit_depth_range is {limits}: give two numbers, the values that become black and white, such as 0,4095'
            )
        if not 0 < self.max_pixels < 2**31:
            raise SamjaxError(f'max_pixels is {self.max_pixels}: give a number from 1 to {2**31 - 1}, height x width')


DEFAULT = ImageOptions()


class OpenedImage(NamedTuple):
    """An image that has been decoded to its last pixel, as stored."""

    image: Image.Image  # of 8 bits per channel
    orientation: int  # EXIF's 1 .. 8
    is_scaled: bool  # whether the file has more bits, and `ImageOptions.bit_depth_range` was applied


def read_image(path: str | Path, options: ImageOptions = DEFAULT) -> np.ndarray:
    """uint8 RGB (H, W, 3), upright.

    Raises:
        SamjaxError: the file is missing, or is no image that `open_image` reads.
    """
    try:
        return decode_image(Path(path).read_bytes(), options)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not Path(path).is_symlink():
            raise SamjaxError(f'{path} does not exist: name an image file') from None
        why = os_errors.reason(error) if isinstance(error, OSError) else error
        raise SamjaxError(f'{path} cannot be read ({why}): name another file') from None
    except InvalidExample as error:
        raise SamjaxError(f'{path} cannot be used, {error.cause} ({error.detail}): name another file') from None


def decode_image(data: bytes, options: ImageOptions = DEFAULT) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an image file, upright.

    Raises:
        InvalidExample: see `open_image`.
    """
    opened = open_image(data, options)
    return upright_rgb(opened.image, opened.orientation)


def open_image(data: bytes, options: ImageOptions = DEFAULT) -> OpenedImage:
    """The only image of a file.

    Raises:
        InvalidExample: it is incomplete, has more than `options.max_pixels`, holds several images (pages of a TIFF,
            frames of an animation; the previews beside the image of a JPEG do not count), or has other than 8 bits
            per channel and `options.bit_depth_range` does not say how to show them.
    """
    try:
        with open_file(io.BytesIO(data), FORMATS, options.max_pixels) as image:
            if (count := num_images(image)) > 1:
                detail = f'it holds {count} images: save each as a file of its own'
                raise InvalidExample('several images in a file', detail)
            deep = more_than_8_bits(image)
            if image.format == 'PNG':
                check_png(image)
            image.load()
            orientation = image.getexif().get(ORIENTATION)
    except InvalidExample:
        raise
    except Exception as error:  # pillow raises nearly anything on damaged files
        raise InvalidExample('unreadable image', why_unreadable(error, data)) from error
    if deep and not options.bit_depth_range:
        raise InvalidExample('not 8 bits', f'its pixels are {deep}: {EIGHT_BITS_REMEDY}')
    if deep:
        image = _scaled(data, image, deep, options.bit_depth_range)
    return OpenedImage(image, orientation if orientation in SYMMETRY else 1, bool(deep))


def upright_rgb(image: Image.Image, orientation: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an image as stored; opacity is dropped."""
    image.info.pop('transparency', None)  # pillow would warn
    return np.array(apply_symmetry(np.asarray(image.convert('RGB')), SYMMETRY[orientation]), order='C')


def orientation_for(size: tuple[int, int], opened: OpenedImage, as_stored: bool = False) -> int:
    """EXIF's 1 .. 8: the orientation of an image in which it has the `size` (H, W) that its masks are for.

    Cameras store images rotated and state that in EXIF; some annotation tools respect it, others do not.  An image
    that fits both ways is taken as EXIF says.  as_stored: the masks are for the stored pixels in any case.

    Raises:
        InvalidExample: it has another size.
    """
    orientation = 1 if as_stored else opened.orientation
    stored_size = opened.image.size[::-1]
    upright_size = stored_size[::-1] if SYMMETRY[orientation] & 4 else stored_size
    if tuple(size) not in (upright_size, stored_size):
        actual = f'{upright_size[0]} x {upright_size[1]}'
        raise InvalidExample('wrong size', f'the masks are for {size[0]} x {size[1]}, the image has {actual} px')
    return orientation if tuple(size) == upright_size else 1


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in px of an image file as stored, read from its header.

    Raises:
        InvalidExample: it is no image.
    """
    return _size_and_orientation(data)[0]


def upright_size(data: bytes) -> tuple[int, int]:
    """As `image_size`, of the image as EXIF rotates it."""
    size, orientation = _size_and_orientation(data)
    return size[::-1] if SYMMETRY.get(orientation, 0) & 4 else size


def _size_and_orientation(data: bytes) -> tuple[tuple[int, int], int | None]:
    try:
        with open_file(io.BytesIO(data), FORMATS, max_pixels=2**62) as image:
            return (image.height, image.width), image.getexif().get(ORIENTATION)
    except Exception as error:  # as above
        raise InvalidExample('unreadable image', why_unreadable(error, data)) from error


# ---- more than 8 bits ------------------------------------------------------------------------------


def more_than_8_bits(image: Image.Image) -> str:
    """What the pixels of an image that is not loaded yet are, such as '16-bit RGB'; empty for 8 bits per channel.

    pillow has no mode for colours of 16 bits: it would cut them to 8 without a word.
    """
    if image.mode not in EIGHT_BIT:
        return {'I': '32-bit integers', 'F': '32-bit floating point'}.get(image.mode, f'16-bit grey ({image.mode})')
    if image.format == 'PNG':
        raw_mode = image.tile[0].args if image.tile else ''
        bits = 16 if ';16' in str(raw_mode) else 8
    elif image.format == 'TIFF':
        bits = max(map(int, np.atleast_1d(image.tag_v2.get(BITS_PER_SAMPLE, 1))))
        if 2 in np.atleast_1d(image.tag_v2.get(SAMPLE_FORMAT, 1)):
            raise InvalidExample('not 8 bits', f'its pixels are signed {bits}-bit integers: save it as PNG')
        if bits > 8 and image.tag_v2.get(PLANAR_CONFIGURATION, 1) == 2:
            raise InvalidExample('not 8 bits', f'its colours are {bits}-bit planes of their own: save it as PNG')
    else:
        bits = 8
    return f'{bits}-bit {image.mode}' if bits > 8 else ''


def _scaled(data: bytes, image: Image.Image, deep: str, limits: tuple[float, ...]) -> Image.Image:
    """An image of 8 bits of one with more: `limits` become 0 and 255, the values between them linearly."""
    values_HWC = np.asarray(image) if image.mode not in EIGHT_BIT else _deep_colours(data, deep)
    low, high = limits
    if not np.isfinite(values_HWC).all():
        raise InvalidExample('not 8 bits', 'it has values that are not finite: replace them')
    scaled_HWC = np.rint((values_HWC.astype(np.float64) - low) * (255 / (high - low)))
    scaled = Image.fromarray(np.clip(scaled_HWC, 0, 255).astype(np.uint8))
    scaled.format = image.format
    return scaled


def _deep_colours(data: bytes, deep: str) -> np.ndarray:
    """(H, W, 3) of colours with more than 8 bits."""
    try:
        import cv2
    except ImportError:
        raise SamjaxError(f'an image has {deep} pixels, which OpenCV reads: pip install "samjax[deep]"') from None
    values_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values_HWC is None:
        raise InvalidExample('unreadable image', f'OpenCV cannot read its {deep} pixels: save it with 8 bits')
    return values_HWC if values_HWC.ndim == 2 else values_HWC[..., 2::-1]


def why_unreadable(error: Exception, data: bytes) -> str:
    """Why pillow could not read a file, without the addresses of Python objects: two runs report the same."""
    if not isinstance(error, Image.UnidentifiedImageError):
        return reason(error)
    if not data:
        return 'it is empty'
    if data[:4] in TIFF_MARKS:
        return 'it is a damaged TIFF, or one of a kind that is not read: save it as PNG with 8 bits per channel'
    return 'it is no JPEG, PNG, WebP, BMP, TIFF or GIF file, or its beginning is damaged'
