"""An image as it is stored, decoded when it is needed and at no more than the resolution that is needed."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from samjax.images.file import open_file

# EXIF orientation 1 .. 8 as a symmetry of the square (see `apply_symmetry`) that makes the stored pixels upright.
SYMMETRY = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}
STORED_FORMATS = ('JPEG', 'MPO', 'PNG')  # pillow's names of what `EncodedImage` decodes; MPO is a JPEG with extras


class EncodedImage:
    """An image file or array and its orientation; `height` and `width` of the upright image are known undecoded."""

    def __init__(self, open_image: Callable[[], Image.Image], orientation: int = 1):
        """open_image: makes a pillow image, a new one at each call; orientation: EXIF's 1 .. 8."""
        self._open_image, self._symmetry = open_image, SYMMETRY[orientation]
        size = open_image().size
        self.height, self.width = size if self._symmetry & 4 else size[::-1]

    @classmethod
    def from_array(cls, image_HW3: np.ndarray) -> EncodedImage:
        """Of uint8 RGB."""
        return cls(functools.partial(Image.fromarray, image_HW3))

    @classmethod
    def from_bytes(cls, data: bytes, orientation: int = 1) -> EncodedImage:
        """Of a JPEG or PNG file.  Raises PIL.UnidentifiedImageError."""
        return cls(functools.partial(_open_stored, data), orientation)

    def pixels(self) -> np.ndarray:
        """uint8 RGB (height, width, 3) at full resolution."""
        return self.at_least(self.height, self.width)

    def at_least(self, height: int, width: int) -> np.ndarray:
        """uint8 RGB at the smallest of the scales 1, 1/2, 1/4, 1/8 that is not below `height` and `width`.

        JPEG can be decoded at these scales: half the size takes a third of the time.  Other formats give all pixels.
        """
        image = self._open_image()
        image.draft('RGB', (height, width) if self._symmetry & 4 else (width, height))
        return apply_symmetry(np.asarray(image.convert('RGB')), self._symmetry)


def _open_stored(data: bytes) -> Image.Image:
    return open_file(io.BytesIO(data), ('JPEG', 'PNG'), max_pixels=2**31)  # it was checked when it was stored


def apply_symmetry(x_HW: np.ndarray, symmetry: int) -> np.ndarray:
    """An image or mask (H, W, ...) under symmetry 0 .. 7: the sum of 1 left-right, 2 up-down, 4 then transposed."""
    x_HW = x_HW[:, ::-1] if symmetry & 1 else x_HW
    x_HW = x_HW[::-1] if symmetry & 2 else x_HW
    return x_HW.swapaxes(0, 1) if symmetry & 4 else x_HW
