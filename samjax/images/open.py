"""Image files of any origin, checked: whole, 8 bits per channel, rotated as EXIF says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from samjax.errors import InvalidExample, SamjaxError
from samjax.images.encoded_image import SYMMETRY, apply_symmetry

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')  # modes of pillow
ORIENTATION = 0x0112  # EXIF's tag


def read_image(path: str | Path, orientation: int | None = None) -> np.ndarray:
    """uint8 RGB (H, W, 3), upright.  orientation: see `decode_image`.

    Raises:
        SamjaxError: the file is missing, no complete image, or not of 8 bits per channel.
    """
    try:
        return decode_image(Path(path).read_bytes(), orientation)
    except FileNotFoundError:
        raise SamjaxError(f'{path} does not exist: name an image file') from None
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): name another file') from None
    except InvalidExample as error:
        raise SamjaxError(f'{path} cannot be used, {error.cause} ({error.detail}): name another file') from None


def decode_image(data: bytes, orientation: int | None = None) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an image file, upright.

    orientation: EXIF's 1 .. 8; by default the one that the file states.

    Raises:
        InvalidExample: see `open_image`.
    """
    image, stated = open_image(data)
    return upright_rgb(image, orientation or stated)


def open_image(data: bytes) -> tuple[Image.Image, int]:
    """An image that has been decoded to its last pixel, as stored, and its orientation: EXIF's 1 .. 8, 1 by default.

    Raises:
        InvalidExample: it is incomplete, or has other than 8 bits per channel: how such values are to be shown is
            not known.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            orientation = image.getexif().get(ORIENTATION)
    except Exception as error:  # pillow raises nearly anything on damaged files
        raise InvalidExample('unreadable image', str(error)) from error
    if image.mode not in EIGHT_BIT:
        detail = f'its pixels are of type {image.mode}: save it with 8 bits per channel, scaled as it should look'
        raise InvalidExample('not 8 bits', detail)
    return image, orientation if orientation in SYMMETRY else 1


def upright_rgb(image: Image.Image, orientation: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) of an image as stored; opacity is dropped."""
    image.info.pop('transparency', None)  # pillow would warn
    return np.array(apply_symmetry(np.asarray(image.convert('RGB')), SYMMETRY[orientation]), order='C')


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in px of an image file as stored, read from its header.

    Raises:
        InvalidExample: it is no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # as above
        raise InvalidExample('unreadable image', str(error)) from error
