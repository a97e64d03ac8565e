"""SA-1B: an image and a JSON of the same name beside it, in folders at any depth or in tar shards."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, Shard, in_shards
from samjax.data.formats.tar import ByteRange, list_members
from samjax.errors import InvalidExample, SamjaxError
from samjax.storage import digest
from samjax.storage.walk import has_suffix, list_files

IMAGE = ('.jpg', '.jpeg', '.png')
JSON = ('.json',)
TAR = ('.tar',)
PAIR_BYTES = 1e6  # of an image and its JSON in a shard, about


def open_index(path: Path) -> DatasetIndex | None:
    """The data set below a folder or in one tar file, None if it is not of this format; reads no image.

    Raises:
        SamjaxError: a folder cannot be read.
    """
    files = _list(path)
    folder = path if path.is_dir() else path.parent
    tars = _tar_shards(folder, [file for file in files if _suffix(file) in TAR])
    pairs = _pair_up(
        (Path(file).relative_to(folder).as_posix(), ByteRange(file, 0, os.path.getsize(file)))
        for file in files
        if _suffix(file) not in TAR
    )
    if not tars and not any(isinstance(pair, Pair) for pair in pairs):
        return None
    return DatasetIndex('SA-1B', [*tars, *in_shards(pairs)], _digest(path, files))


def open_shards(path: str, numbers: str) -> DatasetIndex:
    """The tar shards below a folder whose names have these numbers, such as '0-9,12'.

    Raises:
        SamjaxError: one of them is not there, or a folder cannot be read.
    """
    folder = Path(path).expanduser()
    tars = _with_numbers(folder, [file for file in _list(folder) if _suffix(file) in TAR], numbers)
    return DatasetIndex('SA-1B', _tar_shards(folder, tars), _digest(folder, tars))


def _list(path: Path) -> list[str]:
    """A tar shard, or the images, JSON files and tar shards of a folder."""
    if path.is_file():
        return [str(path)] if _suffix(path) in TAR else []
    return list(list_files(path, has_suffix(IMAGE + JSON + TAR)))


def _digest(path: Path, files: Iterable[str]) -> str:
    return digest.of_files(path, ((os.path.relpath(file, path), file) for file in files))


# ---- shards and items ------------------------------------------------------------------------------


class Tar(NamedTuple):
    """A tar shard."""

    path: str
    key: str  # its path below the folder
    size: int  # bytes

    @property
    def weight(self) -> float:
        return 1 + self.size / PAIR_BYTES

    def items(self) -> Iterator[Item]:
        """What is wrong with the tar file, then its pairs in the order of names; reads only tar headers."""
        members, damaged = [], []
        try:
            for name, data in list_members(self.path):
                if not os.path.basename(name).startswith('.') and _suffix(name) in IMAGE + JSON:
                    members.append((name, data))
        except (tarfile.TarError, EOFError, OSError) as error:
            damaged.append(InvalidItem(self.key, self.key, 'damaged tar', str(error)))
        yield from damaged
        yield from _pair_up(members, prefix=f'{self.key}/')


class Pair(NamedTuple):
    """An image and its JSON."""

    name: str  # path without suffix below the folder, with the tar's name as a folder
    location: str
    image: ByteRange
    json: ByteRange

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, text = _read(self.image, 'unreadable image'), _read(self.json, 'invalid JSON')
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidExample('invalid JSON', str(error)) from error
        size = tuple(_field(content, 'image', side, kind=int) for side in ('height', 'width'))
        annotations = _field(content, 'annotations', kind=list)
        masks, skipped_masks = [], Causes()
        for n, annotation in enumerate(annotations):
            try:
                masks.append(_mask(annotation, f'mask {n}'))
            except InvalidExample as error:
                skipped_masks.add('no mask', error.detail)
        return AnnotatedImage(image, size, masks, skipped_masks)


def _tar_shards(folder: Path, tars: Iterable[str]) -> list[Shard]:
    return [Tar(file, Path(file).relative_to(folder).as_posix(), os.path.getsize(file)) for file in tars]


def _with_numbers(path: Path, tars: list[str], numbers: str) -> list[str]:
    """The tar files whose number is among `numbers`, such as '0-9,12'."""
    by_number = {}
    for file in tars:
        digits = re.findall(r'\d+', Path(file).stem)
        if digits:
            by_number[int(digits[-1])] = file
    wanted = set()
    for part in numbers.split(','):
        ends = re.fullmatch(r'(\d+)(?:-(\d+))?', part.strip())
        if not ends:
            raise SamjaxError(f'shards {numbers!r} is not like 0-9,12')
        wanted |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    absent = sorted(wanted - set(by_number))
    if absent:
        raise SamjaxError(
            f'{path} has no tar file for {len(absent)} of the {len(wanted)} shards, such as number {absent[0]}: '
            f'it has {len(by_number)}, so download the others or choose fewer'
        )
    return [by_number[number] for number in sorted(wanted)]


def _pair_up(files: Iterable[tuple[str, ByteRange]], prefix: str = '') -> list[Item]:
    """Items in the order of names: pairs, and what lacks its other half or has too many."""
    by_stem: dict[str, tuple[list[ByteRange], list[ByteRange]]] = {}
    for file, data in files:
        images, jsons = by_stem.setdefault(os.path.splitext(file)[0], ([], []))
        (images if _suffix(file) in IMAGE else jsons).append(data)
    return [_item(f'{prefix}{stem}', *by_stem[stem]) for stem in sorted(by_stem)]


def _item(name: str, images: list[ByteRange], jsons: list[ByteRange]) -> Item:
    if not images:
        return InvalidItem(name, name, 'no image', 'the JSON has no JPEG or PNG of the same name beside it')
    if not jsons:
        return InvalidItem(name, name, 'no JSON', 'the image has no JSON of the same name beside it')
    if len(images) + len(jsons) > 2:
        return InvalidItem(name, name, 'duplicate name', 'several images or JSON files have this name')
    return Pair(name, name, images[0], jsons[0])


def _suffix(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()


# ---- content ---------------------------------------------------------------------------------------


def _read(source: ByteRange, cause: str) -> bytes:
    try:
        data = source.read()
    except OSError as error:
        raise InvalidExample(cause, str(error)) from error
    if len(data) < source.size:
        raise InvalidExample(cause, f'only {len(data)} of {source.size} bytes are there')
    return data


def _mask(annotation, description: str) -> dict:
    size = _field(annotation, 'segmentation', 'size', kind=list, description=description)
    counts = _field(annotation, 'segmentation', 'counts', kind=(str, list), description=description)
    scores = {
        key: float(_field(annotation, key, kind=(int, float), description=description))
        for key in ('predicted_iou', 'stability_score')
        if key in annotation
    }
    return {'size': size, 'counts': counts, **scores}


def _field(content, *keys: str, kind: type | tuple[type, ...], description: str = 'the JSON'):
    """The value at keys within keys.  Raises InvalidExample if there is none, or it is not of this type."""
    for depth, key in enumerate(keys, 1):
        if not isinstance(content, Mapping) or key not in content:
            raise InvalidExample('missing key', f'{description} has no {".".join(keys[:depth])}')
        content = content[key]
    if not isinstance(content, kind) or isinstance(content, bool):
        raise InvalidExample('missing key', f'{".".join(keys)} of {description} is {str(content)[:20]!r}')
    return content
