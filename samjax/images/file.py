"""Reading an image file, and opening it by pillow: with a limit that is an argument, and how many images it holds."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from samjax.errors import InvalidExample
from samjax.storage import os_errors

MAX_PIXELS = 178_956_970  # height x width; the limit of pillow, which is for the whole process
SUBFILE_TYPE = 254  # tag of TIFF
REDUCED_OR_MASK = 1 | 4  # bits of that: the page is a smaller version or the transparency mask of another

_lock = threading.Lock()


def read_bytes(path: str | Path, cause: str) -> bytes:
    """The content of a file.  Raises InvalidExample, with this cause, if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidExample(cause, os_errors.reason(error)) from error


def open_file(file: str | Path | BinaryIO, formats: tuple[str, ...], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`PIL.Image.open`, which reads no more than the header, of a file with at most `max_pixels`.

    Raises:
        InvalidExample: it has more; whatever pillow raises.
    """
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height > max_pixels:
        size = f'{image.height} x {image.width} px'
        image.close()
        detail = f'it has {size}, more than {max_pixels}: shrink it, or raise --max-pixels or data.max_pixels'
        raise InvalidExample('too many pixels', detail)
    return image


def check_png(image: Image.Image) -> None:
    """Compares the checksums of a PNG file that is open; pillow does not compare those of the pixels.

    Raises:
        ValueError: it is damaged or cut off.
    """
    file, position, kind = image.fp, image.fp.tell(), b''
    file.seek(8)
    while kind != b'IEND':
        length, kind = struct.unpack('>I4s', file.read(8).ljust(8, b'\0'))
        content, checksum = file.read(length), file.read(4)
        if len(checksum) < 4:
            raise ValueError('it is truncated')
        if checksum != struct.pack('>I', zlib.crc32(content, zlib.crc32(kind))):
            raise ValueError('a checksum of the PNG differs')
    file.seek(position)


def num_images(image: Image.Image) -> int:
    """Number of images in a file: pages of a TIFF, frames of an animation.

    The pictures that a JPEG has beside its image (MPO) are previews, depth maps and the like and do not count, nor does
    what a TIFF marks as a smaller version or a transparency mask of another page, as GeoTIFF has them.
    """
    if image.format == 'MPO':
        return 1
    count = getattr(image, 'n_frames', 1)
    if image.format == 'TIFF' and count > 1:
        pages = range(count)
        count = 0
        for page in pages:
            image.seek(page)
            count += not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK
        image.seek(0)
    return count
