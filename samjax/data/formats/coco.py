"""COCO's JSON: instances (polygons, RLE compressed and not, crowd) and panoptic."""

from __future__ import annotations

import collections
import hashlib
import io
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

from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidExample, InvalidItem, Item, in_shards
from samjax.errors import SamjaxError
from samjax.masks import rle

LONGEST = 4_000_000  # px of one outline; pycocotools takes 80 bytes for each, and no outline that people draw is near
MOST = 2**31  # px of one image; pycocotools counts them in 32 bits


def is_coco(path: pathlib.Path) -> bool:
    """Whether a file is JSON of this form; parses it, unless the one look that SA-1B's many files get is enough."""
    try:
        data = path.read_bytes()
        return b'"images"' in data and not _wrong_form(json.loads(data))
    except (OSError, ValueError, RecursionError):
        return False


def find(path: pathlib.Path) -> DatasetIndex:
    """The images and masks of one JSON in the order of its `images`.

    An image is looked for where its `file_name` leads from the JSON's folder or the parent of that, then below the
    JSON's folder, then below the parent if the folder is called annotations or holds none of the images.  Items that
    annotations name but `images` lacks come last.
    Raises SamjaxError if the file cannot be read or is no JSON of this form.
    """
    path = pathlib.Path(os.path.abspath(path))
    content = _read_json(path)
    entries = _entries(content['images'], path.name)
    panoptic = any(isinstance(one, Mapping) and 'segments_info' in one for one in content['annotations'])
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
    return DatasetIndex(layout, in_shards(items), _digest(path, images, pngs))


class Instances(NamedTuple):
    """An image with a polygon or an RLE for each mask."""

    name: str
    place: str
    path: str
    size: tuple[int, int] | None  # height and width in px; None if only the image says
    masks: tuple[tuple[object, bool], ...]  # segmentation as in the JSON, whether it is a crowd
    repeated: int  # masks with the id of another one

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        masks, left_out = [], collections.Counter({'duplicate id': self.repeated})
        for segmentation, crowd in self.masks:
            try:
                masks.append(_mask(segmentation, crowd, *size))
            except _LeftOut as error:
                left_out[error.cause] += 1
        return AnnotatedImage(image, size, masks, dict(+left_out))


class Panoptic(NamedTuple):
    """An image with a PNG of the same size whose colours are segments."""

    name: str
    place: str
    path: str
    size: tuple[int, int] | None  # height and width in px; None if only the image says
    png: str
    segments: tuple[tuple[int, bool], ...]  # id, whether it is a crowd
    repeated: int  # segments with the id of another one

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image, size = _read_image(self.path, self.size)
        rles = rle.encode_labels(_read_segments(self.png, size))
        if unlisted := sorted(rles.keys() - dict(self.segments).keys()):
            detail = f'{len(unlisted)} segments of the PNG are not in segments_info, such as {unlisted[0]}'
            raise InvalidExample('wrong segments', detail)
        masks, left_out = [], collections.Counter({'duplicate id': self.repeated})
        for segment, crowd in self.segments:
            if crowd:
                left_out['crowd'] += 1
            elif segment not in rles:
                left_out['no pixels'] += 1
            else:
                masks.append(rles[segment])
        return AnnotatedImage(image, size, masks, dict(+left_out))


# ---- the JSON --------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A good entry of `images`."""

    id: int
    name: str
    file_name: str
    size: tuple[int, int] | None


class _Group(NamedTuple):
    """The annotations of one image."""

    annotations: list[Mapping]
    repeated: list[Mapping]  # left out, for their id is taken


def _read_json(path: pathlib.Path) -> Mapping:
    mend = "data.path must name a whole file in COCO's form, with images and annotations"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): {mend}') from error
    except (ValueError, RecursionError) as error:
        raise SamjaxError(f'{path} is not valid JSON ({error}): {mend}') from error
    if wrong := _wrong_form(content):
        raise SamjaxError(f'{path} {wrong}: {mend}')
    return content


def _wrong_form(content) -> str:
    """Why parsed JSON is not of COCO's form, empty if it is."""
    if not isinstance(content, Mapping):
        return 'is not a JSON object'
    lacking = [key for key in ('images', 'annotations') if not isinstance(content.get(key), list)]
    return f'has no list of {" and ".join(lacking)}' if lacking else ''


def _entries(images: list, place: str) -> list[_Entry | InvalidItem]:
    """What the `images` say, in their order; of several with one id or name the first is good."""
    ids, names, entries = set(), set(), []
    for number, image in enumerate(images):
        which = f'images[{number}]'
        file_name, image_id = _file_name(image), _integer(image, 'id')
        if file_name is None or image_id is None:
            detail = f'{which} has no {"integer id" if image_id is None else "file_name"}'
            entries.append(InvalidItem(which, place, 'missing key', detail))
            continue
        name = os.path.splitext(file_name)[0]
        if image_id in ids:
            detail = f'{which} has the id {image_id} of an entry before it'
            entries.append(InvalidItem(f'{name} ({which})', place, 'duplicate id', detail))
        elif name in names:
            detail = f'{which} has the name of an entry before it'
            entries.append(InvalidItem(f'{name} ({which})', place, 'duplicate name', detail))
        else:
            entries.append(_Entry(image_id, name, file_name, _size(image)))
        ids.add(image_id)
        names.add(name)
    return entries


def _by_image(annotations: list, panoptic: bool) -> dict[int | None, _Group]:
    """Annotations by image id, None for those that have none."""
    groups = collections.defaultdict(lambda: _Group([], []))
    seen = set()
    for annotation in annotations:
        image_id = _integer(annotation, 'image_id')
        # COCO's panoptic annotations have no id: there is one for each image.
        own = image_id if panoptic or not isinstance(annotation, Mapping) else annotation.get('id')
        taken = isinstance(own, (int, str)) and own in seen
        (groups[image_id].repeated if taken else groups[image_id].annotations).append(annotation)
        if isinstance(own, (int, str)):
            seen.add(own)
    return dict(groups)


def _items(
    entries: list[_Entry | InvalidItem],
    groups: Mapping[int | None, _Group],
    images: Mapping[str, list[str]],
    pngs: Mapping[str, list[str]] | None,
    folder: pathlib.Path,
) -> Iterator[Item]:
    """One for each entry; images, pngs: the files that each file name may mean, pngs None if not panoptic."""
    for entry in entries:
        if isinstance(entry, InvalidItem):
            yield entry
            continue
        files = images[entry.file_name]
        if len(files) != 1:
            yield InvalidItem(entry.name, entry.file_name, 'no image', _lost(entry.file_name, files))
            continue
        common = entry.name, _place(files[0], folder), files[0], entry.size
        group = groups[entry.id] if entry.id in groups else _Group([], [])
        if pngs is None or not group.annotations:
            yield Instances(*common, tuple(map(_segmentation, group.annotations)), len(group.repeated))
        else:
            yield _panoptic(common, group, pngs)


def _segmentation(annotation: Mapping) -> tuple[object, bool]:
    return annotation.get('segmentation'), bool(annotation.get('iscrowd'))


def _panoptic(common: tuple, group: _Group, pngs: Mapping[str, list[str]]) -> Panoptic | InvalidItem:
    name, place = common[:2]
    (annotation,) = group.annotations
    file_name, segments = _file_name(annotation), _segments(annotation)
    if file_name is None or any(_integer(one, 'id') is None for one in segments):
        detail = f'the annotation has {"no file_name" if file_name is None else "segments without an integer id"}'
        return InvalidItem(name, place, 'missing key', detail)
    files = pngs[file_name]
    if len(files) != 1:
        return InvalidItem(name, place, 'no PNG', _lost(file_name, files))
    crowd = {}
    for one in segments:
        crowd.setdefault(one['id'], bool(one.get('iscrowd')))
    repeated = len(segments) - len(crowd) + sum(len(_segments(again)) for again in group.repeated)
    return Panoptic(*common, files[0], tuple(crowd.items()), repeated)


def _unknown(
    groups: Mapping[int | None, _Group], images: list, names: Collection[str], place: str
) -> Iterator[InvalidItem]:
    """One for each image id that annotations have and `images` lacks."""
    known = {_integer(image, 'id') for image in images} - {None}
    for image_id, group in groups.items():
        if image_id not in known:
            name, count = f'image {image_id}', len(group.annotations) + len(group.repeated)
            what = 'no integer image_id' if image_id is None else f'the image_id {image_id}, which no image has'
            name = f'{name} of the annotations' if name in names else name
            yield InvalidItem(name, place, 'unknown image id', f'{count} annotations have {what}')


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


def _size(image: Mapping) -> tuple[int, int] | None:
    """Height and width in px as the JSON says, None if it says none that can be."""
    height, width = _integer(image, 'height'), _integer(image, 'width')
    stated = height is not None and width is not None and height > 0 and width > 0
    return (height, width) if stated and height * width < MOST else None


def _segments(annotation) -> list:
    """`segments_info`, or one entry without an id if it is not a list."""
    segments = annotation.get('segments_info')
    return segments if isinstance(segments, list) else [None]


def _integer(content, key: str) -> int | None:
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if type(value) is int else None


# ---- files -----------------------------------------------------------------------------------------


def _locate(
    file_names: Iterable[str],
    bases: list[pathlib.Path],
    folder: pathlib.Path,
    taken: Collection[str] = (),
) -> dict[str, list[str]]:
    """Files that each name may mean: one if all is well, none if it is absent, several if that is not clear.

    No file of `taken` is meant: an image may have the name of the PNG of its segments.
    """
    found = {name: _first_file(name, bases, taken) for name in file_names}
    _search(found, folder, taken)
    below = os.path.join(folder, '')
    some = any(os.path.normpath(file).startswith(below) for files in found.values() for file in files)
    if folder.name == 'annotations' or not some:
        _search(found, folder.parent, taken)
    return found


def _first_file(name: str, bases: list[pathlib.Path], taken: Collection[str]) -> list[str]:
    files = (os.path.join(base, name) for base in bases)
    return [file for file in files if file not in taken and os.path.isfile(file)][:1]


def _search(found: dict[str, list[str]], root: pathlib.Path, taken: Collection[str]) -> None:
    """Fills in what lies below `root`: files that end in the whole name, else in its last part if one name has that."""
    lasts = collections.Counter(map(os.path.basename, found))
    absent = [name for name, files in found.items() if not files]
    by_last = _walk(root, set(map(os.path.basename, absent)))
    for name in absent:
        last = os.path.basename(name)
        files = [file for file in by_last[last] if file not in taken]
        end = '/'.join(part for part in name.split('/') if part not in ('', '..'))
        whole = [file for file in files if file.endswith(f'/{end}')]
        found[name] = whole or (files if lasts[last] == 1 else [])


def _walk(root: pathlib.Path, names: set[str]) -> dict[str, list[str]]:
    """Files below `root` by each of the names, in a fixed order; hidden folders are left out."""
    found = {name: [] for name in names}
    if not names:
        return found
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up, or a second link to the same folder
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(subfolder for subfolder in subfolders if subfolder[0] != '.')
        for file in names.intersection(files):
            found[file].append(os.path.join(folder, file))
    return found


def _lost(file_name: str, files: list[str]) -> str:
    """Why a name means no file: `files` are none, or several."""
    if files:
        return f'{file_name} may be {files[0]} or {files[1]}'
    return f'{file_name} is not to be found from the folder of the JSON'


def _place(file: str, folder: pathlib.Path) -> str:
    """Path from the folder if it lies below, else the whole one."""
    file, below = os.path.normpath(file), os.path.join(folder, '')
    return file.removeprefix(below)


def _digest(path: pathlib.Path, *found: Mapping[str, list[str]]) -> str:
    """Fingerprint of the JSON's path, and of name, size and time of it and of every file found."""
    digest = hashlib.sha256(os.fsencode(path.resolve()))
    single = ((name, files[0]) for one in found for name, files in one.items() if len(files) == 1)
    for name, file in [('', str(path)), *single]:
        stat = os.stat(file)
        digest.update(f'\0{name} {stat.st_size} {stat.st_mtime_ns}'.encode())
    return digest.hexdigest()[:32]


# ---- image and masks -------------------------------------------------------------------------------


class _LeftOut(Exception):
    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


def _read_image(path: str, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
    """Bytes of the file, and height and width in px: as stated, else from the image.  Raises InvalidExample."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
        if size is None:
            with Image.open(io.BytesIO(data)) as image:
                size = image.height, image.width
    except Exception as error:  # PIL raises nearly anything on damaged files
        raise InvalidExample('unreadable image', str(error)) from error
    return data, size


def _read_segments(path: str, size: tuple[int, int]) -> np.ndarray:
    """Segment of each pixel, int32 [H, W], 0 for none.  Raises InvalidExample."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            rgb_HW3 = np.asarray(image.convert('RGB') if mode in ('RGB', 'RGBA', 'P') else None)
    except Exception as error:  # as above
        raise InvalidExample('unreadable PNG', str(error)) from error
    if rgb_HW3.ndim != 3:
        raise InvalidExample('wrong segments', f'the PNG of the segments has pixels of type {mode}, not RGB')
    if rgb_HW3.shape[:2] != size:
        stated, there = (' x '.join(map(str, sides)) for sides in (size, rgb_HW3.shape[:2]))
        raise InvalidExample('wrong size', f'the image has {stated} px, the PNG of its segments {there}')
    return rgb_HW3 @ np.array([1, 256, 256**2], np.int32)  # uint8 @ int32 is int32


def _mask(segmentation, crowd: bool, height: int, width: int) -> dict:
    """COCO RLE of one annotation, that of the JSON as it is.  Raises _LeftOut."""
    if crowd:
        raise _LeftOut('crowd')
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get('size'), segmentation.get('counts')
        if not isinstance(size, list) or not isinstance(counts, (str, list)):
            raise _LeftOut('no mask')
        return {'size': size, 'counts': counts}
    if not isinstance(segmentation, list) or not segmentation:
        raise _LeftOut('no mask')
    polygons = [_polygon(part, height, width) for part in segmentation]
    good = [polygon for polygon in polygons if polygon is not None]
    if not good:
        raise _LeftOut('bad polygon')
    merged = coco.merge(coco.frPyObjects(good, height, width))
    if not coco.area(merged):
        raise _LeftOut('no pixels')
    return merged


def _polygon(part, height: int, width: int) -> np.ndarray | None:
    """x, y, x, y, .. in px of a polygon, None if it is none.

    pycocotools steps along the outline, so corners far outside the image would take it any time and memory;
    they are moved nearer, which no sensible polygon notices.
    """
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return None
    if not all(type(number) in (int, float) for number in part):
        return None
    try:
        corners_N2 = np.array(part, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        return None
    if not np.isfinite(corners_N2).all():
        return None
    sides_2 = np.array([width, height])
    corners_N2 = np.clip(corners_N2, -2 * sides_2, 3 * sides_2)
    outline = np.abs(corners_N2 - np.roll(corners_N2, 1, 0)).max(1).sum()
    return corners_N2.ravel() if outline <= LONGEST else None
