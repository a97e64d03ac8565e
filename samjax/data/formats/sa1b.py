"""SA-1B: an image and a JSON of the same name beside it, in folders at any depth or in tar shards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.dataset_index import (
    AnnotatedImage,
    DatasetIndex,
    InvalidExample,
    InvalidItem,
    Item,
    Shard,
    in_shards,
)
from samjax.errors import SamjaxError

IMAGE = ('.jpg', '.jpeg', '.png')
JSON = ('.json',)
TAR = ('.tar',)
PAIR_BYTES = 1e6  # of an image and its JSON in a shard, about


def find(path: Path) -> DatasetIndex | None:
    """The set below a folder or in one tar file, None if it is not of this layout; reads no image.

    Raises SamjaxError if a folder cannot be read.
    """
    stats = {file: os.stat(file) for file in _files(path)}
    folder = path if path.is_dir() else path.parent
    tars = _as_units(folder, {file: stat for file, stat in stats.items() if _suffix(file) in TAR})
    pairs = _paired(
        (Path(file).relative_to(folder).as_posix(), Part(file, 0, stat.st_size))
        for file, stat in stats.items()
        if _suffix(file) not in TAR
    )
    if not tars and not any(isinstance(pair, Pair) for pair in pairs):
        return None
    return DatasetIndex('SA-1B', [*tars, *in_shards(pairs)], _digest(path, stats))


def find_shards(path: str, numbers: str) -> DatasetIndex:
    """Some of the tar shards below a folder: those with these numbers in their names, such as '0-9,12'.

    Raises SamjaxError if one is not there.
    """
    folder = Path(path).expanduser()
    tars = _wanted(folder, [file for file in _files(folder) if _suffix(file) in TAR], numbers)
    stats = {file: os.stat(file) for file in tars}
    return DatasetIndex('SA-1B', _as_units(folder, stats), _digest(folder, stats))


def _as_units(folder: Path, stats: Mapping[str, os.stat_result]) -> list[Shard]:
    return [Tar(file, Path(file).relative_to(folder).as_posix(), stat.st_size) for file, stat in stats.items()]


class Tar(NamedTuple):
    """A tar shard."""

    path: str
    key: str  # its path below the folder
    size: int  # bytes

    @property
    def weight(self) -> float:
        return 1 + self.size / PAIR_BYTES

    def items(self) -> Iterator[Item]:
        """What is wrong with the shard, then its pairs in the order of names; reads only tar headers."""
        members, broken = [], None
        try:
            with tarfile.open(self.path, 'r:') as tar:
                for member in tar:
                    name = os.path.normpath(member.name).lstrip('/')
                    hidden = os.path.basename(name)[0] == '.'
                    if member.isfile() and not hidden and _suffix(name) in IMAGE + JSON:
                        members.append((name, Part(self.path, member.offset_data, member.size)))
                    tar.members = []  # a shard has tens of thousands; the module would keep them all
        except (tarfile.TarError, EOFError, OSError) as error:
            broken = InvalidItem(self.key, self.key, 'damaged tar', str(error))
        yield from [broken] if broken else []
        yield from _paired(members, inside=f'{self.key}/')


class Part(NamedTuple):
    """Some bytes of a file: all of it, or one member of a tar shard."""

    path: str
    offset: int  # bytes
    size: int  # bytes

    def read(self) -> bytes:
        with open(self.path, 'rb') as file:
            file.seek(self.offset)
            return file.read(self.size)


class Pair(NamedTuple):
    """An image and its JSON."""

    name: str  # path without suffix below the folder, with the tar's name as a folder
    place: str
    image: Part
    json: Part

    def load(self) -> AnnotatedImage:
        image, text = _read(self.image, 'unreadable image'), _read(self.json, 'invalid JSON')
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidExample('invalid JSON', str(error)) from error
        size = tuple(_field(content, 'image', side, kind=int) for side in ('height', 'width'))
        found = _field(content, 'annotations', kind=list)
        return AnnotatedImage(image, size, [_mask(one, f'mask {n}') for n, one in enumerate(found)])


def _files(path: Path) -> Iterator[str]:
    """A tar shard, or the images, JSON files and tar shards of a folder."""
    if path.is_file():
        yield from [str(path)] if _suffix(path) in TAR else []
    else:
        yield from list_files(path, IMAGE + JSON + TAR)


def list_files(path: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Files with these suffixes, in lower case, below `path` in a fixed order, hidden ones left out.

    Raises SamjaxError for a folder that cannot be read.
    """
    seen = set()
    for folder, subfolders, files in os.walk(path, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if s[0] != '.')
        if real in seen:  # a link back up, or a second link to the same folder
            continue
        seen.add(real)
        for file in sorted(files):
            if file[0] != '.' and _suffix(file) in suffixes:
                yield os.path.join(folder, file)


def _unreadable(error: OSError):
    raise SamjaxError(f'{error.filename} cannot be read ({error.strerror}): mend its permissions or leave it out')


def _wanted(path: Path, tars: list[str], shards: str) -> list[str]:
    """The tar files whose number is in `shards`."""
    by_number = {}
    for file in tars:
        numbers = re.findall(r'\d+', Path(file).stem)
        if numbers:
            by_number[int(numbers[-1])] = file
    wanted = set()
    for part in shards.split(','):
        ends = re.fullmatch(r'(\d+)(?:-(\d+))?', part.strip())
        if not ends:
            raise SamjaxError(f'shards {shards!r} is not like 0-9,12')
        wanted |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    absent = sorted(wanted - set(by_number))
    if absent:
        raise SamjaxError(
            f'{path} has no tar file for {len(absent)} of the {len(wanted)} shards, such as number {absent[0]}: '
            f'it has {len(by_number)}, so load the others or ask for fewer'
        )
    return [by_number[number] for number in sorted(wanted)]


def _paired(files: Iterable[tuple[str, Part]], inside: str = '') -> list[Item]:
    """Files as items in the order of names: pairs, and what lacks its other half or has too many."""
    parts: dict[str, tuple[list[Part], list[Part]]] = {}
    for file, part in files:
        images, jsons = parts.setdefault(os.path.splitext(file)[0], ([], []))
        (images if _suffix(file) in IMAGE else jsons).append(part)
    return [_item(f'{inside}{stem}', *parts[stem]) for stem in sorted(parts)]


def _item(name: str, images: list[Part], jsons: list[Part]) -> Item:
    if not images:
        return InvalidItem(name, name, 'no image', 'the JSON has no JPEG or PNG of the same name beside it')
    if not jsons:
        return InvalidItem(name, name, 'no JSON', 'the image has no JSON of the same name beside it')
    if len(images) + len(jsons) > 2:
        return InvalidItem(name, name, 'duplicate name', 'several images or JSON files share this name')
    return Pair(name, name, images[0], jsons[0])


def _digest(path: Path, stats: Mapping[str, os.stat_result]) -> str:
    """Of the path and of the name, size and time of every file."""
    found = hashlib.sha256(os.fsencode(path.resolve()))
    for file, stat in stats.items():
        found.update(os.fsencode(f'\0{os.path.relpath(file, path)}\0{stat.st_size}\0{stat.st_mtime_ns}'))
    return found.hexdigest()[:32]


def _read(part: Part, cause: str) -> bytes:
    try:
        data = part.read()
    except OSError as error:
        raise InvalidExample(cause, str(error)) from error
    if len(data) < part.size:
        raise InvalidExample(cause, f'only {len(data)} of {part.size} bytes are there')
    return data


def _mask(content, which: str) -> dict:
    size = _field(content, 'segmentation', 'size', kind=list, which=which)
    counts = _field(content, 'segmentation', 'counts', kind=(str, list), which=which)
    scores = {
        key: float(_field(content, key, kind=(int, float), which=which))
        for key in ('predicted_iou', 'stability_score')
        if key in content
    }
    return {'size': size, 'counts': counts, **scores}


def _field(content, *keys: str, kind, which: str = 'the JSON'):
    for depth, key in enumerate(keys, 1):
        if not isinstance(content, Mapping) or key not in content:
            raise InvalidExample('missing key', f'{which} has no {".".join(keys[:depth])}')
        content = content[key]
    if not isinstance(content, kind) or isinstance(content, bool):
        raise InvalidExample('missing key', f'{".".join(keys)} of {which} is {str(content)[:20]!r}')
    return content


def _suffix(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()
