"""Decisions about a data set on disk that its files leave open; every command and option for them ends here."""

from __future__ import annotations

import dataclasses

from samjax.errors import SamjaxError
from samjax.images.open import ImageOptions

LAYOUTS = ('sa1b', 'coco', 'labelme', 'folder')
MASK_KINDS = ('auto', 'binary', 'labels', 'soft')


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How the images and masks at a path are read.  The defaults decide by what the files hold.

    Raises:
        SamjaxError: a value is unknown.
    """

    layout: str = ''  # one of LAYOUTS; '': the one by which most images have masks
    images: str = ''  # folder of the images of the layout 'folder', relative to the path; '': recognized by its name
    masks: str = ''  # folder of the mask files, as `images`
    mask_kind: str = 'auto'  # what a mask file is, one of MASK_KINDS: see samjax/data/formats/label_image.py
    image: ImageOptions = ImageOptions()

    def __post_init__(self):
        for name, known in (('layout', LAYOUTS), ('mask_kind', MASK_KINDS)):
            value = vars(self)[name]
            if value not in known and (name, value) != ('layout', ''):
                raise SamjaxError(f'{name} {value!r} is not known: set it to one of {", ".join(known)}')
        if self.images and self.layout not in ('', 'folder'):
            raise SamjaxError(
                f"folders of images and masks are those of the layout 'folder', not {self.layout!r}: leave one out"
            )
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
