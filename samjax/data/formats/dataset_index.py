"""What every format on disk is read as: an index of shards, their items, and an annotated image from each item."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from samjax.data.formats.causes import Causes
from samjax.errors import InvalidExample

SHARD_SIZE = 1024  # items of a shard, where the format itself has no shards


class AnnotatedImage(NamedTuple):
    """An image and its masks as they are stored; `samjax.data.records.record` checks them."""

    image: bytes  # the file as it is, in any format that pillow reads
    size: tuple[int, int]  # height and width in px that the masks are for
    masks: list[dict]  # COCO RLE: size [H, W] and counts (bytes, str or list), perhaps predicted_iou, stability_score
    skipped_masks: Causes = Causes()  # annotations that are no masks to train on
    warnings: Causes = Causes()  # what is read, and may not be what was meant
    read_as: Mapping[str, int] = {}  # interpretation of its mask files -> number, such as {'masks/: binary': 1}
    as_stored: bool = False  # whether the masks are for the pixels as stored, even if EXIF says that they are rotated


class Item(Protocol):
    """Something that should be an image with masks; small, so that it can be sent to other processes."""

    name: str  # unique within the data set
    location: str  # where it is stored, for messages

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""


class InvalidItem(NamedTuple):
    """An item that is known to be invalid before it is read."""

    name: str
    location: str
    cause: str
    detail: str

    def load(self) -> AnnotatedImage:
        raise InvalidExample(self.cause, self.detail)


class Shard(Protocol):
    """Items that one process prepares as one file."""

    key: str  # unique within the data set; stays the same as long as the data set does
    weight: float  # approximate number of images

    def items(self) -> Iterator[Item]:
        """The items in a fixed order."""


class ListedShard(NamedTuple):
    """A shard that holds its items."""

    key: str
    listed: Sequence[Item]

    @property
    def weight(self) -> float:
        return float(len(self.listed))

    def items(self) -> Iterator[Item]:
        return iter(self.listed)


class DatasetIndex(NamedTuple):
    """A data set of images with masks as it is stored; nothing is read yet but names."""

    layout: str  # the format, for messages, such as 'COCO instances'
    shards: list[Shard]
    digest: str  # changes when a file of the data set does
    num_annotated: int = 0  # images with masks, as far as names and a sample of the files tell
    files: Collection[str] = ()  # absolute paths of what is read or counted in `ignored`, if it was found in a folder
    ignored: Causes = Causes()  # files below the path that are not read, by what they are
    warnings: Causes = Causes()  # about the data set as a whole
    images_by_layout: Mapping[str, int] = {}  # `num_annotated` of each layout that fits, the chosen one first


def in_shards(items: Iterable[Item]) -> list[ListedShard]:
    """Shards of up to `SHARD_SIZE` items in the order given."""
    items, shards = iter(items), []
    while listed := list(itertools.islice(items, SHARD_SIZE)):
        shards.append(ListedShard(f'{len(shards):05d}', listed))
    return shards
