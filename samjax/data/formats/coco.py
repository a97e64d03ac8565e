"""COCO's JSON: instances (polygons, RLE compressed and not, crowd) and panoptic."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from samjax.data.formats import coco_json
from samjax.data.formats.causes import Causes
from samjax.data.formats.coco_json import flag, identifier, integer
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, in_shards
from samjax.data.formats.file_names import Located, as_path, locate, search, storable
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.file import read_bytes
from samjax.images.open import ImageOptions, image_size, open_image, upright_size
from samjax.masks import rle
from samjax.storage import digest

LISTS = ('images', 'annotations')
REMEDY = "data.path must name a complete file in COCO's format, with images and annotations"
SEARCHED = 'below the folder of the JSON, nor where it leads from there'
ANY_SIZE = ImageOptions(max_pixels=2**31 - 1)  # a PNG of segments has the size of its image, which is checked


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
    panoptic = coco_json.is_panoptic(content['annotations'])
    groups = _by_image(content['annotations'])

    folder = path.parent
    file_names = [entry.file_name for entry in entries if isinstance(entry, _Entry)]
    pngs = {}
    if panoptic:
        first = [_file_name(annotations[0][1]) for annotations in groups.values()]
        pngs = _locate(filter(None, first), [path.with_suffix(''), folder, folder.parent], folder)
    taken = {located.files[0] for located in pngs.values() if len(located.files) == 1}
    images = _locate(file_names, [folder, folder.parent], folder, taken)

    items = list(_items(entries, groups, images, pngs if panoptic else None, folder))
    items += _unknown(groups, content['images'], {item.name for item in items}, path.name)
    layout = 'COCO panoptic' if panoptic else 'COCO instances'
    unique = [(name, file) for located in (images, pngs) for name, (files, _) in located.items() for file in files[:1]]
    return DatasetIndex(layout, in_shards(items), digest.of_files(path, [('', path), *unique]))


def sizes_from_files(path: pathlib.Path) -> dict[int | str, tuple[int, int]]:
    """(height, width) in px, as EXIF rotates them, of the valid images of a JSON that states none, by id.

    Raises:
        SamjaxError: see `open_index`.
    """
    sizes = {}
    for shard in open_index(path).shards:
        for item in shard.items():
            if not isinstance(item, InvalidItem) and item.size is None:
                try:
                    sizes[item.image_id] = _read_image(item.path, None)[1]
                except InvalidExample:
                    continue
    return sizes


class Annotation(NamedTuple):
    """A mask of an image as in the JSON."""

    position: int  # in the list
    id: object
    segmentation: object
    iscrowd: object

    @property
    def label(self) -> str:
        return coco_json.label(self.id, self.position)


class Instances(NamedTuple):
    """An image with a polygon or an RLE for each mask."""

    name: str
    location: str
    path: str
    image_id: int | str
    size: tuple[int, int] | None  # height and width in px; None if the JSON states none that is possible
    annotations: tuple[Annotation, ...]

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        masks, skipped, warnings, seen = [], Causes(), _size_warnings(self.size), set()
        for annotation in self.annotations:
            label, crowd = annotation.label, flag(annotation.iscrowd)
            if crowd is None:
                skipped.add('unclear iscrowd', f'{label}: {reprlib.repr(annotation.iscrowd)}')
                continue
            if crowd:
                skipped.add('crowd', label)
                continue
            try:
                mask, area, changes = coco_json.read_segmentation(annotation.segmentation, *size)
            except InvalidExample as error:
                skipped.add(error.cause, f'{label}: {error.detail}')
                continue
            if not area:
                skipped.add('no pixels', label)
            elif mask['counts'] in seen:
                skipped.add('duplicate mask', label)
            else:
                masks.append(mask)
                seen.add(mask['counts'])
                for cause, detail in changes:
                    warnings.add(cause, f'{label}: {detail}' if detail else label)
        return AnnotatedImage(image, size, masks, skipped, warnings)


class Panoptic(NamedTuple):
    """An image with a PNG of the same size whose colours are segments."""

    name: str
    location: str
    path: str
    image_id: int | str
    size: tuple[int, int] | None  # height and width in px; None if the JSON states none that is possible
    png: str
    segments: tuple[tuple[int, object], ...]  # id, iscrowd as in the JSON
    duplicates: tuple[int, ...]  # further segments with the id of another one

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        rles = rle.encode_labels(_read_segments(self.png, size))
        if unlisted := sorted(rles.keys() - dict(self.segments).keys()):
            detail = f'{len(unlisted)} segments of the PNG are not in segments_info, such as {unlisted[0]}'
            raise InvalidExample('wrong segments', detail)
        masks, skipped = [], Causes()
        for segment in self.duplicates:
            skipped.add('duplicate id', f'segment {segment}')
        for segment, iscrowd in self.segments:
            crowd = flag(iscrowd)
            if crowd is None:
                skipped.add('unclear iscrowd', f'segment {segment}: {reprlib.repr(iscrowd)}')
            elif crowd:
                skipped.add('crowd', f'segment {segment}')
            elif segment not in rles:
                skipped.add('no pixels', f'segment {segment}')
            else:
                masks.append(rles[segment])
        return AnnotatedImage(image, size, masks, skipped, _size_warnings(self.size))


# ---- the JSON --------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A valid entry of `images`."""

    id: int | str
    name: str
    file_name: str
    size: tuple[int, int] | None


_Group = list[tuple[int, Mapping]]  # annotations with their positions in the JSON


def _entries(images: list, location: str) -> list[_Entry | InvalidItem]:
    """The entries of `images` in their order; of several with the same id or file only the first is valid."""
    ids, names, file_names, entries = set(), set(), set(), []
    for position, image in enumerate(images):
        entry = f'images[{position}]'
        file_name, image_id = _file_name(image), _id(image)
        if file_name is None or image_id is None:
            detail = f'{entry} has no {"id" if image_id is None else "file_name"} that can be read'
            entries.append(InvalidItem(entry, location, 'missing key', detail))
            continue
        name = storable(os.path.splitext(file_name)[0])
        name = storable(file_name) if name in names else name  # a.png beside a.jpg
        if image_id in ids:
            detail = f'{entry} has the id {image_id} of an entry before it'
            entries.append(InvalidItem(f'{name} ({entry})', location, 'duplicate id', detail))
        elif file_name in file_names or name in names:
            detail = f'{entry} has the file_name of an entry before it'
            entries.append(InvalidItem(f'{name} ({entry})', location, 'duplicate name', detail))
        else:
            entries.append(_Entry(image_id, name, file_name, coco_json.image_size(image)))
        ids.add(image_id)
        names.add(name)
        file_names.add(file_name)
    return entries


def _by_image(annotations: list) -> dict[int | str | None, _Group]:
    """Annotations by image id, None for those that have none.  Their own ids do not matter: many files repeat them."""
    groups = collections.defaultdict(list)
    for position, annotation in enumerate(annotations):
        groups[_id(annotation, 'image_id')].append((position, annotation))
    return dict(groups)


def _items(
    entries: list[_Entry | InvalidItem],
    groups: Mapping[int | str | None, _Group],
    images: Mapping[str, Located],
    pngs: Mapping[str, Located] | None,
    folder: pathlib.Path,
) -> Iterator[Item]:
    """An item for each entry.

    images, pngs: the files that each file name may mean; pngs is None if the JSON is not panoptic.
    """
    for entry in entries:
        if isinstance(entry, InvalidItem):
            yield entry
            continue
        located = images[entry.file_name]
        if len(located.files) != 1:
            detail = located.why_missing(entry.file_name, SEARCHED)
            yield InvalidItem(entry.name, storable(entry.file_name), 'no image', detail)
            continue
        (file,) = located.files
        common = entry.name, storable(_location(file, folder)), file, entry.id, entry.size
        group = groups.get(entry.id, [])
        if pngs is None or not group:
            yield Instances(*common, tuple(_annotation(position, annotation) for position, annotation in group))
        else:
            yield _panoptic(common, [annotation for _, annotation in group], pngs)


def _annotation(position: int, annotation: Mapping) -> Annotation:
    return Annotation(position, *map(annotation.get, ('id', 'segmentation', 'iscrowd')))


def _panoptic(common: tuple, annotations: list[Mapping], pngs: Mapping[str, Located]) -> Panoptic | InvalidItem:
    """COCO has one annotation for each image: segments of others are left out as duplicates."""
    name, location = common[:2]
    annotation, *others = annotations
    file_name, segments = _file_name(annotation), _segments(annotation)
    if file_name is None or any(integer(segment, 'id') is None for segment in segments):
        detail = f'the annotation has {"no file_name" if file_name is None else "segments without an integer id"}'
        return InvalidItem(name, location, 'missing key', detail)
    located = pngs[file_name]
    if len(located.files) != 1:
        return InvalidItem(name, location, 'no PNG', located.why_missing(file_name, SEARCHED))
    iscrowd, duplicates = {}, []
    for segment in segments:
        if integer(segment, 'id') in iscrowd:
            duplicates.append(integer(segment, 'id'))
        else:
            iscrowd[integer(segment, 'id')] = segment.get('iscrowd')
    duplicates += [integer(segment, 'id') for other in others for segment in _segments(other)]
    return Panoptic(*common, located.files[0], tuple(iscrowd.items()), tuple(duplicates))


def _unknown(
    groups: Mapping[int | str | None, _Group], images: list, names: Collection[str], location: str
) -> Iterator[InvalidItem]:
    """An item for each image id that annotations have and `images` lacks."""
    known = set(map(_id, images)) - {None}
    for image_id, group in groups.items():
        if image_id not in known:
            name = storable(f'image {image_id}')
            problem = 'no image_id' if image_id is None else f'the image_id {image_id}, which no image has'
            name = f'{name} of the annotations' if name in names else name
            yield InvalidItem(name, location, 'unknown image id', f'{len(group)} annotations have {problem}')


def _id(entry, key: str = 'id') -> int | str | None:
    return identifier(entry.get(key)) if isinstance(entry, dict) else None


def _file_name(content) -> str | None:
    """File name as a POSIX path; LVIS has it as `coco_url`."""
    if not isinstance(content, Mapping):
        return None
    return as_path(content.get('file_name') or content.get('coco_url'))


def _segments(annotation) -> list:
    """`segments_info`, or one entry without an id if it is not a list."""
    segments = annotation.get('segments_info')
    return segments if isinstance(segments, list) else [None]


# ---- files -----------------------------------------------------------------------------------------


def _locate(
    file_names: Iterable[str], bases: list[pathlib.Path], folder: pathlib.Path, taken: Collection[str] = ()
) -> dict[str, Located]:
    """Files of `taken` are left out: an image may have the name of the PNG of its segments."""
    located = locate(file_names, bases, [folder], taken)
    below = os.path.join(folder, '')
    any_below = any(os.path.normpath(file).startswith(below) for files, _ in located.values() for file in files)
    if folder.name == 'annotations' or not any_below:
        located |= search(located, folder.parent, taken)
    return located


def _location(file: str, folder: pathlib.Path) -> str:
    """Path from the folder if the file lies below it, else the whole one."""
    file, below = os.path.normpath(file), os.path.join(folder, '')
    return file.removeprefix(below)


# ---- image and masks -------------------------------------------------------------------------------


def _read_image(path: str, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
    """Bytes of the file, and height and width in px: as stated, else from the image.  Raises InvalidExample."""
    data = read_bytes(path, 'unreadable image')
    return data, upright_size(data) if size is None else size


def _size_warnings(size: tuple[int, int] | None) -> Causes:
    warnings = Causes()
    warnings.add('no valid height and width in the JSON, those of the image file are taken', '', size is None)
    return warnings


def _read_segments(path: str, size: tuple[int, int]) -> np.ndarray:
    """Segment of each pixel, int32 [H, W], 0 for none.  Raises InvalidExample."""
    data = read_bytes(path, 'unreadable PNG')
    try:
        png_size = image_size(data)
        if png_size != size:
            expected, actual = (' x '.join(map(str, sides)) for sides in (size, png_size))
            raise InvalidExample('wrong size', f'it has {actual} px, the image {expected}')
        image = open_image(data, ANY_SIZE).image
    except InvalidExample as error:
        if error.cause == 'not 8 bits':
            detail = 'the PNG of the segments has more than 8 bits per channel: save R + 256 G + 256^2 B as 8-bit RGB'
            raise InvalidExample('wrong segments', detail) from error
        cause = 'unreadable PNG' if error.cause == 'unreadable image' else error.cause
        raise InvalidExample(cause, f'the PNG of the segments: {error.detail}') from error
    if image.mode not in ('RGB', 'RGBA', 'P'):
        raise InvalidExample('wrong segments', f'the PNG of the segments has pixels of type {image.mode}, not RGB')
    image.info.pop('transparency', None)  # pillow would warn
    return np.asarray(image.convert('RGB')) @ np.array([1, 256, 256**2], np.int32)  # uint8 @ int32 is int32
