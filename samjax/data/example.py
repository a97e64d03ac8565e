"""An image with its objects, as every data source gives it."""

from __future__ import annotations

from typing import NamedTuple

from samjax.images.encoded_image import EncodedImage


class Example(NamedTuple):
    """An image with its objects at original size: an item of the sources in `samjax.data`."""

    name: str  # unique within its source; error messages and figures use it
    image: EncodedImage
    rles: list[dict]  # a COCO compressed RLE {'size': [H, W], 'counts': bytes} for each object
