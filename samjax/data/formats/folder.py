"""A folder of images with mask pictures; their names tell what belongs together.

- A folder of images beside one of masks (`IMAGE_FOLDERS`, `MASK_FOLDERS`) with the same subfolders: images/a/x.jpg has
  masks/a/x.png or, one object each, masks/a/x_*.png, masks/a/x-*.png or masks/a/x/*.png.
- The same with a single image, whose masks have any names, as in the Data Science Bowl 2018: ID/images and ID/masks.
- Both in one folder: x.jpg with x.png, or x with x_mask, x-label, x_seg, x_mask_0, .. (`MARK`).
- metadata.jsonl or metadata.csv as for Hugging Face's imagefolder: `file_name`, and `mask_file_name` or the like.  What
  lies below its folder and is not named in it does not belong to the set.

A single mask file has one object per value or colour; of several each is one object.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidExample, InvalidItem, Item, in_shards
from samjax.data.formats.label_image import one_in_all, one_per_value, read_values
from samjax.errors import SamjaxError

JPEG = ('.jpg', '.jpeg')
IMAGES = (*JPEG, '.png', '.webp', '.bmp', '.tif', '.tiff')
MASKS = (*JPEG, '.png', '.gif', '.bmp', '.tif', '.tiff')
TABLES = ('metadata.csv', 'metadata.jsonl')

IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'input', 'inputs', 'jpegimages')
# The first that is there is used: PASCAL VOC has objects and, in SegmentationClass, the same by class.
MASK_FOLDERS = (
    *('segmentationobject', 'masks', 'mask', 'labels', 'label', 'annotations', 'annotation'),
    *('gt', 'ground_truth', 'groundtruth', 'segmentation', 'segmentations', 'segmentationclass', 'target', 'targets'),
)
MARK = re.compile(r'(.*[^/])[-_](?:masks?|labels?|seg|segmentation)(?:[-_]?\d+)?', re.IGNORECASE)

IMAGE_KEYS = ('file_name', 'image_file_name')
MASK_KEYS = (  # the first that fits a column with names of pictures
    re.compile(r'(?:mask|label|annotation|segmentation)s?(?:_file_names?)?', re.IGNORECASE),
    re.compile(r'.*file_names?', re.IGNORECASE),
)


class Pictures(NamedTuple):
    """An image file and its mask files, if there are any, as paths below `folder`."""

    name: str
    folder: str
    place: str  # of the image
    masks: tuple[str, ...]

    def load(self) -> AnnotatedImage:
        try:
            image = Path(self.folder, self.place).read_bytes()
        except OSError as error:
            raise InvalidExample('unreadable image', str(error)) from error
        if not self.masks:
            return AnnotatedImage(image, _size(image), [])
        rles = one_per_value if len(self.masks) == 1 else one_in_all
        size, masks, empty = None, [], 0
        for file in self.masks:
            values_HW = read_values(os.path.join(self.folder, file))
            size = size or values_HW.shape
            if values_HW.shape != size:
                detail = f'{file} has (height, width) {values_HW.shape}, {self.masks[0]} has {size}'
                raise InvalidExample('wrong size', detail)
            found = rles(values_HW)
            masks += found
            empty += not found
        return AnnotatedImage(image, size, masks, {'no pixels': empty} if empty else {})


def _size(image: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except Exception as error:  # pillow raises nearly anything on damaged files
        raise InvalidExample('unreadable image', str(error)) from error


class Group(NamedTuple):
    """Files by name, the path without suffix, mark and folder of images or masks; a name has one file or more."""

    images: dict[str, list[str]]
    masks: dict[str, list[str]]
    joints: str  # characters that may follow an image's name in the name of its mask; none: the names are equal


class Side(NamedTuple):
    """What to do with the files of one folder of a pair."""

    suffixes: tuple[str, ...]  # of files that count
    files: dict[str, list[str]]  # of the group


def find(path: Path) -> DatasetIndex | None:
    """The images with masks below a folder; None if nothing there has one of the forms above.

    Raises SamjaxError if a folder or table cannot be read.
    """
    if not path.is_dir():
        return None
    files = list(_list_files(path))
    tables = {file: rows for file in files if os.path.basename(file) in TABLES and (rows := _rows(path, file))}
    named_in_table = {os.path.dirname(table) for table in tables}
    pictures = [file for file in files if _has(file, IMAGES + MASKS) and named_in_table.isdisjoint(_above(file))]
    items = list(_from_tables(path, tables))
    for group in _groups(pictures):
        items += _matched(path, group)
    if not items:
        return None
    masks = {file for item in items if isinstance(item, Pictures) for file in item.masks}
    digest = _digest(path, {*tables, *masks, *(item.place for item in items)})
    return DatasetIndex('images and masks', in_shards(_with_unique_names(items)), digest)


def _list_files(path: Path) -> Iterator[str]:
    """Pictures and tables, relative to `path` and in a fixed order, hidden ones left out."""
    above = {str(path): frozenset()}  # real folders that contain a folder: a link to one of them is a loop
    for folder, subfolders, files in os.walk(path, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in above[folder] else sorted(s for s in subfolders if s[0] != '.')
        if real in above[folder]:
            continue
        above |= {os.path.join(folder, s): above[folder] | {real} for s in subfolders}
        below = Path(folder).relative_to(path).as_posix()
        for file in sorted(files):
            if file[0] != '.' and (_has(file, IMAGES + MASKS) or file in TABLES):
                yield os.path.normpath(os.path.join(below, file))


def _refuse(error: OSError):
    raise SamjaxError(f'{error.filename} cannot be read ({error.strerror}): allow it, or move it elsewhere') from error


def _digest(path: Path, files: Iterable[str]) -> str:
    found = hashlib.sha256(os.fsencode(path.resolve()))
    for file in sorted(files):
        found.update(os.fsencode(f'\0{file}\0'))
        try:
            stat = os.stat(os.path.join(path, file))
        except OSError:  # a row of a table, or a broken link, which is reported when it is read
            continue
        found.update(f'{stat.st_size}\0{stat.st_mtime_ns}'.encode())
    return found.hexdigest()[:32]


def _has(file: object, suffixes: Collection[str]) -> bool:
    return isinstance(file, str) and os.path.splitext(file)[1].lower() in suffixes


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _above(file: str) -> Iterator[str]:
    """Folders that a file lies in, the innermost first, '' last."""
    while file:
        file = os.path.dirname(file)
        yield file


def _groups(pictures: list[str]) -> list[Group]:
    """Images and masks among which to look for pairs; pictures that are neither are left out."""
    sides, groups = _sides(pictures)
    loose = []
    for file in pictures:
        folder = next((folder for folder in _above(file) if folder in sides), None)
        if folder is None:
            loose.append(file)
        elif _has(file, sides[folder].suffixes):
            name = os.path.join(os.path.dirname(folder), os.path.relpath(_stem(file), folder))
            sides[folder].files[name].append(file)
    return [group for group in (*groups, _in_one_folder(loose)) if group.images and group.masks]


def _sides(pictures: list[str]) -> tuple[dict[str, Side], list[Group]]:
    """Each folder of images or masks that has its counterpart beside it, and the empty groups that it takes to fill."""
    children = defaultdict(list)
    for folder in sorted({folder for file in pictures for folder in _above(file)} - {''}):
        children[os.path.dirname(folder)].append(folder)
    sides, groups = {}, []
    for beside in children.values():
        images, masks = _called(IMAGE_FOLDERS, beside), _called(MASK_FOLDERS, beside)
        if images and masks:
            group = Group(defaultdict(list), defaultdict(list), joints='_-/')
            sides |= {folder: Side(IMAGES, group.images) for folder in images}
            sides |= {masks[0]: Side(MASKS, group.masks)} | {folder: Side((), {}) for folder in masks[1:]}
            groups.append(group)
    return sides, groups


def _called(names: tuple[str, ...], folders: list[str]) -> list[str]:
    return [folder for name in names for folder in folders if os.path.basename(folder).lower() == name]


def _in_one_folder(files: list[str]) -> Group:
    group = Group(defaultdict(list), defaultdict(list), joints='')
    marked = {file: mark[1] for file in files if _has(file, MASKS) and (mark := MARK.fullmatch(_stem(file)))}
    photos = {_stem(file) for file in files if _has(file, JPEG) and file not in marked} - set(marked.values())
    for file in files:
        if file in marked:
            group.masks[marked[file]].append(file)
        elif _has(file, '.png') and _stem(file) in photos:
            group.masks[_stem(file)].append(file)
        elif _has(file, IMAGES):
            group.images[_stem(file)].append(file)
    return group


def _matched(path: Path, group: Group) -> Iterator[Item]:
    masks_of, others = {name: [] for name in group.images}, []
    for name, files in group.masks.items():
        owner = _owner(name, group)
        (others if owner is None else masks_of[owner]).extend(files)
    if len(masks_of) == 1 and group.joints and not any(masks_of.values()):
        masks_of, others = dict.fromkeys(masks_of, others), []
    for name, masks in masks_of.items():
        first, *more = group.images[name]
        yield Pictures(name, str(path), first, tuple(masks))
        yield from (InvalidItem(name, file, 'duplicate name', f'the same name as {first}') for file in more)
    yield from (InvalidItem(file, file, 'no image', 'no image has a name that the mask belongs to') for file in others)


def _owner(name: str, group: Group) -> str | None:
    """The longest name of an image that the name of a mask begins with: a_1.png is of a_1 rather than of a."""
    ends = [len(name), *(n for n in range(len(name) - 1, 0, -1) if name[n] in group.joints)]
    return next((name[:end] for end in ends if name[:end] in group.images), None)


def _with_unique_names(items: Iterable[Item]) -> Iterator[Item]:
    taken = set()
    for item in items:
        item = item._replace(name=item.place) if item.name in taken else item
        taken.add(item.name)
        yield item


def _from_tables(path: Path, tables: dict[str, list[tuple[int, dict]]]) -> Iterator[Item]:
    places = {}
    for table, rows in tables.items():
        for line, row in rows:
            place = f'{table}, line {line}'
            files = [os.path.normpath(os.path.join(os.path.dirname(table), file)) for file in _named(row)]
            if not files:
                yield InvalidItem(place, place, 'missing key', 'file_name and mask_file_name do not both name pictures')
                continue
            image, *masks = files
            name = _stem(image)
            missing = next((file for file in files if not os.path.isfile(os.path.join(path, file))), None)
            if name in places:
                yield InvalidItem(name, place, 'duplicate name', f'the same name as in {places[name]}')
            elif missing:
                yield InvalidItem(
                    name, place, 'no image' if missing == image else 'no mask file', f'{missing} is not there'
                )
            else:
                yield Pictures(name, str(path), image, tuple(masks))
            places.setdefault(name, place)


def _rows(path: Path, table: str) -> list[tuple[int, dict]]:
    """Number of the line and columns of each row, if there is one that names an image and masks.

    Raises SamjaxError if the file cannot be read.
    """
    try:
        # A byte that is not UTF-8 makes a name that no file has, which is reported with its line.
        with open(path / table, encoding='utf-8-sig', errors='replace', newline='') as file:
            if table.endswith('.csv'):
                reader = csv.DictReader(file, restkey='')
                rows = [(reader.line_num, row) for row in reader]
            else:
                rows = [(line, _json(text)) for line, text in enumerate(file, 1) if text.strip()]
    except (OSError, csv.Error) as error:
        raise SamjaxError(f'{path / table} cannot be read ({error}): mend it, or move it elsewhere') from error
    return rows if any(_named(row) for _, row in rows) else []


def _json(text: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {}


def _named(row: dict) -> list[str]:
    """The image and then the masks that a row names; nothing if it lacks either."""
    image = next(([row[key]] for key in IMAGE_KEYS if key in row and _has(row[key], IMAGES)), [])
    for columns in MASK_KEYS:
        for key, value in row.items():
            masks = value if isinstance(value, list) else [value]
            if key not in IMAGE_KEYS and columns.fullmatch(key) and masks and all(_has(file, MASKS) for file in masks):
                return image and image + masks
    return []
