"""COCO's JSON: instances (polygons, RLE compressed and not, crowd) and panoptic."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from samjax.data.formats import coco_json
from samjax.data.formats.causes import Causes
from samjax.data.formats.coco_json import integer
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, in_shards
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.open import image_size
from samjax.masks import rle
from samjax.storage import digest
from samjax.storage.walk import list_files

LISTS = ('images', 'annotations')
REMEDY = "data.path must name a complete file in COCO's format, with images and annotations"


def is_coco(path: pathlib.Path) -> bool:
    """Whether a file is JSON of this form; not parsed if a search for one word rules it out, as for SA-1B's files."""
    try:
        data = path.read_bytes()
        return b'"images"' in data and not coco_json.wrong_form(json.loads(data), LISTS)
    except (OSError, ValueError, RecursionError):
        return False


def open_index(path: pathlib.Path) -> DatasetIndex:
    """The images and masks of a JSON file in the order of its `images`.

    An image is looked for where its `file_name` leads from the JSON's folder or the parent of that, then below the
    JSON's folder, then below the parent if the folder is called annotations or holds none of the images.  Items that
    annotations name but `images` lacks come last.

    Raises:
        SamjaxError: the file cannot be read or is no JSON of this form.
    """
    path = pathlib.Path(os.path.abspath(path))
    content = coco_json.read(path, REMEDY)
    if wrong := coco_json.wrong_form(content, LISTS):
        raise SamjaxError(f'{path} {wrong}: {REMEDY}')
    entries = _entries(content['images'], path.name)
    panoptic = any(isinstance(a, Mapping) and 'segments_info' in a for a in content['annotations'])
    groups = _by_image(content['annotations'], panoptic)

    folder = path.parent
    file_names = [entry.file_name for entry in entries if isinstance(entry, _Entry)]
    pngs = {}
    if panoptic:
        first = [_file_name(group.annotations[0]) for group in groups.values()]
        pngs = _locate(filter(None, first), [path.with_suffix(''), folder, folder.parent], folder)
    taken = {files[0] for files in pngs.values() if len(files) == 1}
    images = _locate(file_names, [folder, folder.parent], folder, taken)

    items = list(_items(entries, groups, images, pngs if panoptic else None, folder))
    items += _unknown(groups, content['images'], {item.name for item in items}, path.name)
    layout = 'COCO panoptic' if panoptic else 'COCO instances'
    unique = [(name, files[0]) for located in (images, pngs) for name, files in located.items() if len(files) == 1]
    return DatasetIndex(layout, in_shards(items), digest.of_files(path, [('', path), *unique]))


class Instances(NamedTuple):
    """An image with a polygon or an RLE for each mask."""

    name: str
    location: str
    path: str
    size: tuple[int, int] | None  # height and width in px; None if the JSON states none
    masks: tuple[tuple[object, bool], ...]  # segmentation as in the JSON, whether it is a crowd
    duplicates: int  # masks with the id of another one

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        masks, skipped = [], Causes()
        skipped.add('duplicate id', '', self.duplicates)
        for number, (segmentation, crowd) in enumerate(self.masks):
            try:
                masks.append(_mask(segmentation, crowd, *size))
            except _SkippedMask as error:
                skipped.add(error.cause, f'annotation {number}')
        return AnnotatedImage(image, size, masks, skipped)


class Panoptic(NamedTuple):
    """An image with a PNG of the same size whose colours are segments."""

    name: str
    location: str
    path: str
    size: tuple[int, int] | None  # height and width in px; None if the JSON states none
    png: str
    segments: tuple[tuple[int, bool], ...]  # id, whether it is a crowd
    duplicates: int  # segments with the id of another one

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        rles = rle.encode_labels(_read_segments(self.png, size))
        if unlisted := sorted(rles.keys() - dict(self.segments).keys()):
            detail = f'{len(unlisted)} segments of the PNG are not in segments_info, such as {unlisted[0]}'
            raise InvalidExample('wrong segments', detail)
        masks, skipped = [], Causes()
        skipped.add('duplicate id', '', self.duplicates)
        for segment, crowd in self.segments:
            if crowd:
                skipped.add('crowd', f'segment {segment}')
            elif segment not in rles:
                skipped.add('no pixels', f'segment {segment}')
            else:
                masks.append(rles[segment])
        return AnnotatedImage(image, size, masks, skipped)


# ---- the JSON --------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A valid entry of `images`."""

    id: int
    name: str
    file_name: str
    size: tuple[int, int] | None


class _Group(NamedTuple):
    """The annotations of one image."""

    annotations: list[Mapping]
    duplicates: list[Mapping]  # skipped, because another annotation has the same id


def _entries(images: list, location: str) -> list[_Entry | InvalidItem]:
    """The entries of `images` in their order; of several with the same id or name only the first is valid."""
    ids, names, entries = set(), set(), []
    for number, image in enumerate(images):
        entry = f'images[{number}]'
        file_name, image_id = _file_name(image), integer(image, 'id')
        if file_name is None or image_id is None:
            detail = f'{entry} has no {"integer id" if image_id is None else "file_name"}'
            entries.append(InvalidItem(entry, location, 'missing key', detail))
            continue
        name = os.path.splitext(file_name)[0]
        if image_id in ids:
            detail = f'{entry} has the id {image_id} of an entry before it'
            entries.append(InvalidItem(f'{name} ({entry})', location, 'duplicate id', detail))
        elif name in names:
            detail = f'{entry} has the name of an entry before it'
            entries.append(InvalidItem(f'{name} ({entry})', location, 'duplicate name', detail))
        else:
            entries.append(_Entry(image_id, name, file_name, coco_json.image_size(image)))
        ids.add(image_id)
        names.add(name)
    return entries


def _by_image(annotations: list, panoptic: bool) -> dict[int | None, _Group]:
    """Annotations by image id, None for those that have none."""
    groups = collections.defaultdict(lambda: _Group([], []))
    seen = set()
    for annotation in annotations:
        image_id = integer(annotation, 'image_id')
        # COCO's panoptic annotations have no id: an image has only one.
        own_id = image_id if panoptic or not isinstance(annotation, Mapping) else annotation.get('id')
        is_duplicate = isinstance(own_id, (int, str)) and own_id in seen
        (groups[image_id].duplicates if is_duplicate else groups[image_id].annotations).append(annotation)
        if isinstance(own_id, (int, str)):
            seen.add(own_id)
    return dict(groups)


def _items(
    entries: list[_Entry | InvalidItem],
    groups: Mapping[int | None, _Group],
    images: Mapping[str, list[str]],
    pngs: Mapping[str, list[str]] | None,
    folder: pathlib.Path,
) -> Iterator[Item]:
    """An item for each entry.

    images, pngs: the files that each file name may mean; pngs is None if the JSON is not panoptic.
    """
    for entry in entries:
        if isinstance(entry, InvalidItem):
            yield entry
            continue
        files = images[entry.file_name]
        if len(files) != 1:
            yield InvalidItem(entry.name, entry.file_name, 'no image', _why_missing(entry.file_name, files))
            continue
        common = entry.name, _location(files[0], folder), files[0], entry.size
        group = groups[entry.id] if entry.id in groups else _Group([], [])
        if pngs is None or not group.annotations:
            yield Instances(*common, tuple(map(_segmentation, group.annotations)), len(group.duplicates))
        else:
            yield _panoptic(common, group, pngs)


def _segmentation(annotation: Mapping) -> tuple[object, bool]:
    return annotation.get('segmentation'), bool(annotation.get('iscrowd'))


def _panoptic(common: tuple, group: _Group, pngs: Mapping[str, list[str]]) -> Panoptic | InvalidItem:
    name, location = common[:2]
    (annotation,) = group.annotations
    file_name, segments = _file_name(annotation), _segments(annotation)
    if file_name is None or any(integer(segment, 'id') is None for segment in segments):
        detail = f'the annotation has {"no file_name" if file_name is None else "segments without an integer id"}'
        return InvalidItem(name, location, 'missing key', detail)
    files = pngs[file_name]
    if len(files) != 1:
        return InvalidItem(name, location, 'no PNG', _why_missing(file_name, files))
    crowd = {}
    for segment in segments:
        crowd.setdefault(segment['id'], bool(segment.get('iscrowd')))
    duplicates = len(segments) - len(crowd) + sum(len(_segments(annotation)) for annotation in group.duplicates)
    return Panoptic(*common, files[0], tuple(crowd.items()), duplicates)


def _unknown(
    groups: Mapping[int | None, _Group], images: list, names: Collection[str], location: str
) -> Iterator[InvalidItem]:
    """An item for each image id that annotations have and `images` lacks."""
    known = {integer(image, 'id') for image in images} - {None}
    for image_id, group in groups.items():
        if image_id not in known:
            name, count = f'image {image_id}', len(group.annotations) + len(group.duplicates)
            problem = 'no integer image_id' if image_id is None else f'the image_id {image_id}, which no image has'
            name = f'{name} of the annotations' if name in names else name
            yield InvalidItem(name, location, 'unknown image id', f'{count} annotations have {problem}')


def _file_name(content) -> str | None:
    """File name as a POSIX path; LVIS has it as the last two parts of `coco_url`."""
    if not isinstance(content, Mapping):
        return None
    file_name = content.get('file_name')
    if not file_name and isinstance(content.get('coco_url'), str):
        path = urllib.parse.unquote(re.sub(r'^\w+://[^/]*/|[?#].*', '', content['coco_url']))
        file_name = '/'.join(path.split('/')[-2:])
    if not isinstance(file_name, str) or re.search(r'[\ud800-\udfff]', file_name):  # half a character
        return None
    path = pathlib.PurePosixPath(file_name.replace('\\', '/'))  # Windows wrote it
    return None if path.name in ('', '..') else str(path)


def _segments(annotation) -> list:
    """`segments_info`, or one entry without an id if it is not a list."""
    segments = annotation.get('segments_info')
    return segments if isinstance(segments, list) else [None]


# ---- files -----------------------------------------------------------------------------------------


def _locate(
    file_names: Iterable[str],
    bases: list[pathlib.Path],
    folder: pathlib.Path,
    taken: Collection[str] = (),
) -> dict[str, list[str]]:
    """Files that each name may mean: none if it is missing, several if that is ambiguous.

    Files of `taken` are left out: an image may have the name of the PNG of its segments.
    """
    located = {name: _first_file(name, bases, taken) for name in file_names}
    _search(located, folder, taken)
    below = os.path.join(folder, '')
    any_below = any(os.path.normpath(file).startswith(below) for files in located.values() for file in files)
    if folder.name == 'annotations' or not any_below:
        _search(located, folder.parent, taken)
    return located


def _first_file(name: str, bases: list[pathlib.Path], taken: Collection[str]) -> list[str]:
    files = (os.path.join(base, name) for base in bases)
    return [file for file in files if file not in taken and os.path.isfile(file)][:1]


def _search(located: dict[str, list[str]], root: pathlib.Path, taken: Collection[str]) -> None:
    """Adds files below `root` for names without any: those that end in the whole name, else in its unique last part."""
    last_parts = collections.Counter(map(os.path.basename, located))
    missing = [name for name, files in located.items() if not files]
    by_last_part = _files_named(root, set(map(os.path.basename, missing)))
    for name in missing:
        last_part = os.path.basename(name)
        files = [file for file in by_last_part[last_part] if file not in taken]
        end = '/'.join(part for part in name.split('/') if part not in ('', '..'))
        whole = [file for file in files if file.endswith(f'/{end}')]
        located[name] = whole or (files if last_parts[last_part] == 1 else [])


def _files_named(root: pathlib.Path, names: set[str]) -> dict[str, list[str]]:
    """Files below `root` by each of the names, in a fixed order; folders that cannot be read are left out."""
    files = {name: [] for name in names}
    for file in list_files(root, names.__contains__, on_error=lambda error: None) if names else ():
        files[os.path.basename(file)].append(file)
    return files


def _why_missing(file_name: str, files: list[str]) -> str:
    """Why a name means no file: `files` are none, or several."""
    if files:
        return f'{file_name} may be {files[0]} or {files[1]}'
    return f'{file_name} is not below the folder of the JSON, nor where it leads from there'


def _location(file: str, folder: pathlib.Path) -> str:
    """Path from the folder if the file lies below it, else the whole one."""
    file, below = os.path.normpath(file), os.path.join(folder, '')
    return file.removeprefix(below)


# ---- image and masks -------------------------------------------------------------------------------


class _SkippedMask(Exception):
    """An annotation that is no mask to train on: `cause` is counted."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


def _read_image(path: str, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
    """Bytes of the file, and height and width in px: as stated, else from the image.  Raises InvalidExample."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InvalidExample('unreadable image', str(error)) from error
    return data, image_size(data) if size is None else size


def _read_segments(path: str, size: tuple[int, int]) -> np.ndarray:
    """Segment of each pixel, int32 [H, W], 0 for none.  Raises InvalidExample."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            rgb_HW3 = np.asarray(image.convert('RGB') if mode in ('RGB', 'RGBA', 'P') else None)
    except Exception as error:  # pillow raises nearly anything on damaged files
        raise InvalidExample('unreadable PNG', str(error)) from error
    if rgb_HW3.ndim != 3:
        raise InvalidExample('wrong segments', f'the PNG of the segments has pixels of type {mode}, not RGB')
    if rgb_HW3.shape[:2] != size:
        expected, actual = (' x '.join(map(str, sides)) for sides in (size, rgb_HW3.shape[:2]))
        raise InvalidExample('wrong size', f'the image has {expected} px, the PNG of its segments {actual}')
    return rgb_HW3 @ np.array([1, 256, 256**2], np.int32)  # uint8 @ int32 is int32


def _mask(segmentation, crowd: bool, height: int, width: int) -> dict:
    """COCO RLE of an annotation; one that the JSON has is not checked here.  Raises _SkippedMask."""
    if crowd:
        raise _SkippedMask('crowd')
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get('size'), segmentation.get('counts')
        if not isinstance(size, list) or not isinstance(counts, (str, list)):
            raise _SkippedMask('no mask')
        return {'size': size, 'counts': counts}
    if not isinstance(segmentation, list) or not segmentation:
        raise _SkippedMask('no mask')
    polygons = [coco_json.polygon(part, height, width) for part in segmentation]
    valid = [polygon for polygon in polygons if polygon is not None]
    if not valid:
        raise _SkippedMask('invalid polygon')
    merged = coco_json.polygons_to_rle(valid, height, width)
    if not coco.area(merged):
        raise _SkippedMask('no pixels')
    return merged
