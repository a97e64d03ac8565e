"""One image with its objects, as every source of data gives it."""

from __future__ import annotations

from typing import NamedTuple

from samjax.images.encoded_image import EncodedImage


class Example(NamedTuple):
    """One image with its objects at original size, made by a source in `samjax.data`."""

    name: str  # unique within its source; error messages and figures use it
    image: EncodedImage
    rles: list[dict]  # one COCO compressed RLE {'size': [H, W], 'counts': bytes} per object
