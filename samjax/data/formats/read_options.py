"""Decisions about a data set on disk that its files leave open; every command and option for them ends here."""

from __future__ import annotations

import dataclasses

from samjax.errors import SamjaxError
from samjax.images.open import ImageOptions

MASK_KINDS = ('auto', 'binary', 'labels', 'soft')


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How the images and masks at a path are read.  The defaults decide by what the files hold.

    Raises:
        SamjaxError: a value is unknown.
    """

    layout: str = ''  # a key of `samjax.data.formats.detect.LAYOUTS`; '': by what most files are
    images: str = ''  # folder of the images of the layout 'folder', relative to the path; '': recognized by its name
    masks: str = ''  # folder of the mask files, as `images`
    mask_kind: str = 'auto'  # what a mask file is, one of MASK_KINDS: see samjax/data/formats/label_image.py
    image: ImageOptions = ImageOptions()

    def __post_init__(self):
        if self.mask_kind not in MASK_KINDS:
            raise SamjaxError(f'mask_kind {self.mask_kind!r} is not known: set it to one of {", ".join(MASK_KINDS)}')
        if bool(self.images) != bool(self.masks):
            raise SamjaxError('folders of images and masks go together: name both, or neither')

    @classmethod
    def of(cls, section) -> ReadOptions:
        """From the attributes of the same names, of the section `data` of a config or of a command line."""
        image = ImageOptions(tuple(section.bit_depth_range), section.max_pixels)
        return cls(section.layout, section.images, section.masks, section.mask_kind, image)

    @property
    def changes(self) -> dict:
        """Those that are not the defaults, for reports and digests."""
        defaults = {**vars(ReadOptions()), **vars(ImageOptions())}
        flat = {**vars(self), **vars(self.image)}
        return {name: value for name, value in flat.items() if name != 'image' and value != defaults[name]}


DEFAULT = ReadOptions()
