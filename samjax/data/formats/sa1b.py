"""SA-1B: an image and a JSON of the same name beside it, in folders at any depth or in tar shards.

Names are equal in any Unicode form, and in any letter case if that is unambiguous.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, Shard, in_shards
from samjax.data.formats.file_names import caseless, unicode_form, unique_keys
from samjax.data.formats.json_content import evenly, sa1b_content
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.formats.tar import ByteRange, list_members, whole_file
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import SUFFIXES
from samjax.storage import digest, os_errors
from samjax.storage.walk import has_suffix, ignore_error, list_files

JSON = ('.json',)
TAR = ('.tar',)
PAIR_BYTES = 1e6  # of an image and its JSON in a shard, about
SAMPLED_TARS = 16  # tar files that are looked into to tell whether they are shards
SAMPLED_MEMBERS = 400  # of each of those
NO_IMAGE, NO_JSON = 'no image', 'no JSON'  # causes
OTHER_CASE = 'JSON name(s) that differ from the image in letter case'


def open_index(path: Path, options: ReadOptions = DEFAULT) -> DatasetIndex | None:
    """The data set below a folder or in one tar file; reads no image, and only some of the JSON files.

    None if there is no image with a JSON and no tar file.  An image without JSON belongs to the data set if one with a
    JSON is in its folder, a JSON without image if it has SA-1B's form.  `options` have no effect here.
    """
    del options
    path = Path(os.path.abspath(path))
    files = _list(path)
    folder = path if path.is_dir() else path.parent
    tars = [file for file in files if _suffix(file) in TAR]
    loose = _pair_up((os.path.relpath(file, folder), whole_file(file)) for file in files if _suffix(file) not in TAR)
    pairs = [item for item in loose if isinstance(item, Pair)]
    if not pairs and not tars:
        return None
    loose = list(_without_strays(loose, pairs))
    tars, ignored, num_in_tars = _shards_among(tars, pairs, folder)
    if not pairs and not tars:
        return None
    sampled = evenly(pairs)
    num_pairs = len(pairs) * sum(sa1b_content(pair.json) is not None for pair in sampled) / max(len(sampled), 1)
    if not num_pairs and not tars and 2 * len(pairs) < len(loose):
        return None  # images, few of which have a JSON of something else
    warnings = Causes()
    for pair in pairs:
        image, json = (unicode_form(os.path.splitext(data.path)[0]) for data in pair.data)
        warnings.add(OTHER_CASE, pair.location, image != json)
    read = {*tars, *(data.path for item in loose for data in item.data)}
    used = [file for file in files if file in read]
    return DatasetIndex(
        'SA-1B',
        [*_tar_shards(folder, tars), *in_shards(loose)],
        _digest(path, used),
        num_annotated=round(num_pairs + num_in_tars),
        files={*used, *(file for file in files if _suffix(file) in TAR)},
        ignored=ignored,
        warnings=warnings,
    )


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
    return list(list_files(path, has_suffix(SUFFIXES + JSON + TAR), on_error=ignore_error))


def _digest(path: Path, files: Iterable[str]) -> str:
    return digest.of_files(path, ((os.path.relpath(file, path), file) for file in files))


# ---- tar files -------------------------------------------------------------------------------------


class TarContent(NamedTuple):
    """What the first members of a tar file are."""

    pairs: list[Pair]
    members: set[tuple[str, int]]  # name without folder, and size in bytes
    num_unpaired: int
    fraction: float  # of the tar file that they take
    is_damaged: bool

    @property
    def num_annotated(self) -> float:
        """Pairs with SA-1B's JSON in the whole tar file, about."""
        sampled = evenly(self.pairs, 10)
        num_valid = sum(sa1b_content(pair.json) is not None for pair in sampled)
        return len(self.pairs) / self.fraction * num_valid / max(len(sampled), 1)


def _content(file: str) -> TarContent:
    """Of at least SAMPLED_MEMBERS members, and of all if there is no pair among them."""
    members, stems, is_damaged, fraction = [], {}, False, 1.0
    try:
        for number, (name, data) in enumerate(_data_members(file)):
            members.append((name, data))
            stem, suffix = os.path.splitext(name)
            kinds = stems.setdefault(stem, set())
            kinds.add(suffix.lower() in JSON)
            has_pair = len(kinds) == 2
            if number >= SAMPLED_MEMBERS and has_pair:
                fraction = (data.offset + data.size) / max(os.path.getsize(file), 1)
                break
    except (tarfile.TarError, EOFError, OSError):
        is_damaged = True
    items = _pair_up(members)
    pairs = [item for item in items if isinstance(item, Pair)]
    names = {(os.path.basename(name), data.size) for name, data in members}
    return TarContent(pairs, names, len(items) - len(pairs), fraction, is_damaged)


def _shards_among(tars: list[str], pairs: Collection[Pair], folder: Path) -> tuple[list[str], Causes, float]:
    """Which of the tar files are shards, why the others are not, and the number of pairs in the shards, about.

    pairs: those that are not in a tar file.
    """
    unpacked = {(os.path.basename(data.path), data.size) for pair in pairs for data in pair.data}
    contents = {file: _content(file) for file in evenly(tars, SAMPLED_TARS)}
    any_pair = bool(pairs) or any(content.pairs for content in contents.values())
    shards, ignored = [], Causes()
    for file in tars:
        content, cause = contents.get(file), ''
        if content and not content.is_damaged:
            if not content.pairs and (any_pair or not content.num_unpaired):
                cause = 'tar file(s) without an image and its JSON'
            elif content.pairs and unpacked.issuperset(content.members):
                cause = 'tar file(s) that are unpacked beside them'
        if cause:
            ignored.add(cause, os.path.relpath(file, folder))
        else:
            shards.append(file)
    numbers = [contents[file].num_annotated for file in shards if file in contents]
    return shards, ignored, sum(numbers) * len(shards) / max(len(numbers), 1)


def _data_members(path: str) -> Iterator[tuple[str, ByteRange]]:
    """Images and JSON files in a tar file, as `list_members`."""
    for name, data in list_members(path):
        if not os.path.basename(name).startswith('.') and _suffix(name) in SUFFIXES + JSON:
            yield name, data


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
            for member in _data_members(self.path):
                members.append(member)
        except (tarfile.TarError, EOFError, OSError) as error:
            damaged.append(InvalidItem(self.key, self.key, 'damaged tar', str(error)))
        yield from damaged
        yield from _pair_up(members, prefix=f'{self.key}/')


class Unpaired(NamedTuple):
    """Files of one name that are no pair."""

    name: str
    location: str
    cause: str
    detail: str
    data: tuple[ByteRange, ...]

    def load(self) -> AnnotatedImage:
        raise InvalidExample(self.cause, self.detail)


class Pair(NamedTuple):
    """An image and its JSON."""

    name: str  # path without suffix below the folder, with the tar's name as a folder
    location: str
    image: ByteRange
    json: ByteRange

    @property
    def data(self) -> tuple[ByteRange, ...]:
        return self.image, self.json

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
    return [Tar(file, os.path.relpath(file, folder), whole_file(file).size) for file in tars]


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


def _pair_up(files: Iterable[tuple[str, ByteRange]], prefix: str = '') -> list[Pair | Unpaired]:
    """Items in the order of names: pairs, and what lacks its other half or has too many."""
    by_stem: dict[str, tuple[list[ByteRange], list[ByteRange]]] = {}
    for file, data in files:
        images, jsons = by_stem.setdefault(os.path.splitext(file)[0], ([], []))
        (images if _suffix(file) in SUFFIXES else jsons).append(data)
    for key in (unicode_form, caseless):
        image_with = unique_keys((stem for stem, (_, jsons) in by_stem.items() if not jsons), key)
        json_with = unique_keys((stem for stem, (images, _) in by_stem.items() if not images), key)
        for name in image_with.keys() & json_with.keys():
            by_stem[image_with[name]][1].extend(by_stem.pop(json_with[name])[1])
    return [_item(f'{prefix}{stem}', *by_stem[stem]) for stem in sorted(by_stem)]


def _item(name: str, images: list[ByteRange], jsons: list[ByteRange]) -> Pair | Unpaired:
    if len(images) == len(jsons) == 1:
        return Pair(name, name, images[0], jsons[0])
    if not images:
        cause, detail = NO_IMAGE, 'the JSON has no image of the same name beside it'
    elif not jsons:
        cause, detail = NO_JSON, 'the image has no JSON of the same name beside it'
    else:
        cause, detail = 'duplicate name', 'several images or JSON files have this name'
    return Unpaired(name, name, cause, detail, (*images, *jsons))


def _without_strays(items: Iterable[Pair | Unpaired], pairs: Iterable[Pair]) -> Iterator[Pair | Unpaired]:
    """Without images in folders that hold no pair, and without JSON files of something else that have no image."""
    folders = {os.path.dirname(pair.name) for pair in pairs}
    for item in items:
        cause = item.cause if isinstance(item, Unpaired) else ''
        is_stray_image = cause == NO_JSON and os.path.dirname(item.name) not in folders
        is_stray_json = cause == NO_IMAGE and sa1b_content(item.data[0]) is None
        if not (is_stray_image or is_stray_json):
            yield item


def _suffix(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()


# ---- content ---------------------------------------------------------------------------------------


def _read(source: ByteRange, cause: str) -> bytes:
    try:
        data = source.read()
    except OSError as error:
        raise InvalidExample(cause, os_errors.reason(error)) from error
    if len(data) < source.size:
        raise InvalidExample(cause, f'only {len(data)} of {source.size} bytes are there')
    return data


def _mask(annotation, description: str) -> dict:
    size = _field(annotation, 'segmentation', 'size', kind=list, description=description)
    counts = _field(annotation, 'segmentation', 'counts', kind=(str, list), description=description)
    scores = {
        key: _field(annotation, key, kind=(int, float), description=description)
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
