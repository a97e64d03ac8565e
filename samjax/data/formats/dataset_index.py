"""What every layout on disk is read as: shards of work, the items in them, and an image with masks from each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

SHARD_SIZE = 1024  # items that are prepared as one, where the layout itself has no shards


class InvalidExample(Exception):
    """Why an image cannot be used: `cause` is counted, `detail` is for the one who mends it."""

    def __init__(self, cause: str, detail: str):
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


class AnnotatedImage(NamedTuple):
    """An image and its masks as they were found; `samjax.data.record` checks them."""

    image: bytes  # the file as it is, in any format that pillow reads
    size: tuple[int, int]  # height and width in px that the masks are for
    masks: list[dict]  # COCO RLE: size [H, W] and counts (bytes, str or list), perhaps predicted_iou, stability_score
    left_out: Mapping[str, int] = {}  # cause -> masks that this layout has but nobody trains on, such as {'crowd': 2}
    as_stored: bool = False  # whether the masks are for the pixels as stored, even if EXIF says that they are rotated


class Item(Protocol):
    """Something that should be an image with masks; small, goes to other processes."""

    name: str  # unique within the set
    place: str  # where it lies, for people

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""


class InvalidItem(NamedTuple):
    """An item that is known to be unusable before it is read."""

    name: str
    place: str
    cause: str
    detail: str

    def load(self) -> AnnotatedImage:
        raise InvalidExample(self.cause, self.detail)


class Shard(Protocol):
    """Items that one process prepares as one file."""

    key: str  # unique within the set; the same as long as the set is
    weight: float  # about how many images it has

    def items(self) -> Iterator[Item]:
        """In a fixed order."""


class ListedShard(NamedTuple):
    """A shard whose items are known."""

    key: str
    listed: Sequence[Item]

    @property
    def weight(self) -> float:
        return float(len(self.listed))

    def items(self) -> Iterator[Item]:
        return iter(self.listed)


class DatasetIndex(NamedTuple):
    """A set of images with masks, as it lies on disk."""

    layout: str  # for people, such as 'COCO instances'
    shards: list[Shard]
    digest: str  # changes when a file of the set does


def in_shards(items: Iterable[Item]) -> list[ListedShard]:
    """Units of up to `SHARD_SIZE` items in the order given."""
    items, shards = iter(items), []
    while some := list(itertools.islice(items, SHARD_SIZE)):
        shards.append(ListedShard(f'{len(shards):05d}', some))
    return shards
