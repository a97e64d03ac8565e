"""A label image -> COCO RLE, whatever distinguishes objects in it: numbers, colours, opacity or a soft edge."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from samjax.errors import InvalidExample
from samjax.masks.rle import encode_labels

FORMATS = ('PNG', 'GIF', 'BMP', 'TIFF', 'JPEG')
PLAIN = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N', 'F')  # one number per pixel; all else is colour
VOID = 255
MAX_VALUES = 1000  # in a mask file


def rle_per_value(values_HW: np.ndarray) -> list[dict]:
    """RLE of each value but 0, and but 255 if it is the last of several, as in VOC, DAVIS and Cityscapes."""
    rles = encode_labels(values_HW)
    if len(rles) > 1 and max(rles) == VOID:
        del rles[VOID]
    return list(rles.values())


def rle_of_all(values_HW: np.ndarray) -> list[dict]:
    """RLE of all that is not 0; empty if there is nothing."""
    return list(encode_labels(values_HW != 0).values())


def read_values(file: str) -> np.ndarray:
    """(height, width) of a mask file: 0 for background, another value for each object.  Raises InvalidExample."""
    try:
        with warnings.catch_warnings(action='ignore', category=Image.DecompressionBombWarning):
            values_HW = _decoded(file)
    except InvalidExample:
        raise
    except Exception as error:  # pillow raises nearly anything on damaged files, and an error of its own on huge ones
        raise InvalidExample('unreadable mask', f'{file}: {error}') from error
    count = np.count_nonzero(np.unique(values_HW))
    if count > MAX_VALUES:
        detail = f'{file} has {count} different colours: save it as a PNG with one value per object'
        raise InvalidExample('unclear mask', detail)
    return values_HW


def _decoded(file: str) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as image:
        if getattr(image, 'n_frames', 1) > 1:
            raise InvalidExample('unclear mask', f'{file} has {image.n_frames} images: save one file per object')
        image.load()
    image.info.pop('transparency', None)  # how the image is to be shown; pillow would warn
    if image.format in ('JPEG', 'MPO'):  # compression changes all values a little
        return np.asarray(image.convert('L')) >= 128
    if image.mode == 'P' and _is_black_and_white(image):  # either may be number 0 of the palette
        image = image.convert('L')
    values_HW = np.asarray(image) if image.mode in PLAIN else _colours(image)
    if values_HW.dtype.kind == 'f' and (values_HW % 1).any():
        raise InvalidExample('unclear mask', f'{file} has fractions: save it as a PNG with one value per object')
    return values_HW >= 128 if image.mode != 'P' and _is_soft(values_HW) else values_HW


def _is_black_and_white(image: Image.Image) -> bool:
    colours = image.convert('RGB').getcolors(2)
    return colours is not None and {colour for _, colour in colours} <= {(0, 0, 0), (255, 255, 255)}


def _colours(image: Image.Image) -> np.ndarray:
    """uint8 if all is grey, else uint32 of R + 256 G + 256^2 B and, lest red 255 be void, 255 in the highest byte.

    0 is black or transparent.  Where only the opacity varies, it is the mask; a constant opacity has no meaning.
    """
    pixels_HW = np.ascontiguousarray(image.convert('RGBA')).view('<u4')[..., 0]
    opacity_HW, colour_HW = pixels_HW >> 24, pixels_HW & 0xFFFFFF
    if opacity_HW.min() < opacity_HW.max():
        if colour_HW.min() == colour_HW.max():
            return (2 * opacity_HW >= opacity_HW.max()).astype(np.uint8)
        colour_HW = np.where(opacity_HW, colour_HW, 0)
    if not (colour_HW % 0x10101).any():  # R = G = B
        return (colour_HW // 0x10101).astype(np.uint8)
    return np.where(colour_HW, colour_HW | 0xFF000000, 0)


def _is_soft(values_HW: np.ndarray) -> bool:
    """Whether this is a single object with smoothed edges rather than a map of labels.

    It then has more greys than most maps have labels, few pixels that are far from black and from white, and white
    pixels too, since edges are around something.  A map of 200 small objects on black lacks the white.
    """
    if values_HW.dtype != np.uint8:
        return False
    pixels = np.bincount(values_HW.ravel(), minlength=256)
    between, white = pixels[17:239].sum(), pixels[239:].sum()
    return np.count_nonzero(pixels) > 32 and between <= 0.1 * pixels.sum() and between <= 2 * white
