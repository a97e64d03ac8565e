"""A folder of images and label images, which are matched by their names.

- A folder of images beside one of masks (`IMAGE_FOLDERS`, `MASK_FOLDERS`) with the same subfolders: images/a/x.jpg has
  masks/a/x.png or, one object each, masks/a/x_*.png, masks/a/x-*.png or masks/a/x/*.png.
- The same with a single image, whose masks may have any names, as in the Data Science Bowl 2018: ID/images, ID/masks.
- Both in one folder: x.jpg with x.png, or x with x_mask, x-label, x_seg, x_mask_0, .. (`MARK`).
- metadata.jsonl or metadata.csv as for Hugging Face's imagefolder: `file_name`, and `mask_file_name` or the like.  What
  lies below its folder and is not named in it does not belong to the data set.

A single mask file has an object per value or colour; each of several files is an object.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, in_shards
from samjax.data.formats.label_image import read_mask
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.errors import InvalidExample, SamjaxError, one_line
from samjax.images.file import MAX_PIXELS
from samjax.images.open import image_size
from samjax.storage import digest
from samjax.storage.walk import list_files

JPEG = ('.jpg', '.jpeg')
IMAGES = (*JPEG, '.png', '.webp', '.bmp', '.tif', '.tiff')
MASKS = (*JPEG, '.png', '.gif', '.bmp', '.tif', '.tiff')
TABLES = ('metadata.csv', 'metadata.jsonl')

IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'input', 'inputs', 'jpegimages')
# The first that exists is used: PASCAL VOC has objects and, in SegmentationClass, the same by class.
MASK_FOLDERS = (
    *('segmentationobject', 'masks', 'mask', 'labels', 'label', 'annotations', 'annotation'),
    *('gt', 'ground_truth', 'groundtruth', 'segmentation', 'segmentations', 'segmentationclass', 'target', 'targets'),
)
MARK = re.compile(r'(.*[^/])[-_](?:masks?|labels?|seg|segmentation)(?:[-_]?\d+)?', re.IGNORECASE)

IMAGE_KEYS = ('file_name', 'image_file_name')
MASK_KEYS = (  # the first that matches a column of image file names
    re.compile(r'(?:mask|label|annotation|segmentation)s?(?:_file_names?)?', re.IGNORECASE),
    re.compile(r'.*file_names?', re.IGNORECASE),
)


class ImageWithMasks(NamedTuple):
    """An image file and its mask files, if there are any, as paths below `folder`."""

    name: str
    folder: str
    location: str  # of the image
    masks: tuple[str, ...]
    mask_kind: str = 'auto'  # see `ReadOptions`
    max_pixels: int = MAX_PIXELS  # of a mask file, see `ImageOptions`

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        try:
            image = Path(self.folder, self.location).read_bytes()
        except OSError as error:
            raise InvalidExample('unreadable image', one_line(error)) from error
        if not self.masks:
            return AnnotatedImage(image, image_size(image), [])
        size, masks, skipped_masks, warnings, read_as = None, [], Causes(), Causes(), Counter()
        for file in self.masks:
            path = os.path.join(self.folder, file)
            picture = read_mask(path, self.mask_kind, len(self.masks) > 1, self.max_pixels)
            size = size or picture.size
            if picture.size != size:
                detail = f'{file} has (height, width) {picture.size}, {self.masks[0]} has {size}'
                raise InvalidExample('wrong size', detail)
            masks += picture.rles
            read_as[f'{self._mask_folder(file)}: {picture.read_as}'] += 1
            for cause in picture.skipped_masks:
                skipped_masks.add(cause, file)
            for cause in picture.warnings:
                warnings.add(cause, file)
        return AnnotatedImage(image, size, masks, skipped_masks, warnings, dict(read_as))

    def _mask_folder(self, file: str) -> str:
        """Where the paths of image and mask part: 'masks' for images/a/x.jpg and masks/a/x.png, '*/masks' below."""
        *image, _ = Path(self.location).parts
        *mask, _ = Path(file).parts
        common = os.path.commonprefix([image, mask])
        return os.path.join(*['*'] * bool(common), *mask[len(common) : len(common) + 1]) if mask else '.'


class Group(NamedTuple):
    """Files by name: the path without suffix, `MARK` and the folder of images or masks; a name has one file or more."""

    images: dict[str, list[str]]
    masks: dict[str, list[str]]
    separators: str  # characters that may follow an image's name in the name of its mask; none: the names are equal


class Side(NamedTuple):
    """What to do with the files of one folder of a pair."""

    suffixes: tuple[str, ...]  # of files that count
    files: dict[str, list[str]]  # of the group


def open_index(path: Path, options: ReadOptions = DEFAULT) -> DatasetIndex | None:
    """The images with masks below a folder; None if nothing there has one of the forms above.

    Raises:
        SamjaxError: a folder or table cannot be read.
    """
    if not path.is_dir():
        return None
    files = [os.path.relpath(file, path) for file in list_files(path, _is_candidate, every_link=True)]
    tables = {file: rows for file in files if os.path.basename(file) in TABLES and (rows := _rows(path, file))}
    named_in_table = {os.path.dirname(table) for table in tables}
    candidates = [
        file for file in files if _has_suffix(file, IMAGES + MASKS) and named_in_table.isdisjoint(_parents(file))
    ]
    items = list(_from_tables(path, tables))
    for group in _groups(candidates):
        items += _matched(path, group)
    if not items:
        return None
    decisions = {'mask_kind': options.mask_kind, 'max_pixels': options.image.max_pixels}
    items = [item._replace(**decisions) if isinstance(item, ImageWithMasks) else item for item in items]
    masks = {file for item in items if isinstance(item, ImageWithMasks) for file in item.masks}
    # A location that is a row of a table, or a broken link, counts by its name.
    read = sorted({*tables, *masks, *(item.location for item in items)})
    state = digest.of_files(path, ((file, path / file) for file in read))
    return DatasetIndex('images and masks', in_shards(_with_unique_names(items)), state)


def _is_candidate(name: str) -> bool:
    return not name.startswith('.') and (_has_suffix(name, IMAGES + MASKS) or name in TABLES)


def _has_suffix(file: object, suffixes: Collection[str]) -> bool:
    return isinstance(file, str) and os.path.splitext(file)[1].lower() in suffixes


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _parents(file: str) -> Iterator[str]:
    """Folders that a file lies in, the innermost first, '' last."""
    while file:
        file = os.path.dirname(file)
        yield file


def _groups(files: list[str]) -> list[Group]:
    """Images and masks to be matched with each other; files that are neither are left out."""
    sides, groups = _sides(files)
    loose = []
    for file in files:
        folder = next((folder for folder in _parents(file) if folder in sides), None)
        if folder is None:
            loose.append(file)
        elif _has_suffix(file, sides[folder].suffixes):
            name = os.path.join(os.path.dirname(folder), os.path.relpath(_stem(file), folder))
            sides[folder].files[name].append(file)
    return [group for group in (*groups, _in_one_folder(loose)) if group.images and group.masks]


def _sides(files: list[str]) -> tuple[dict[str, Side], list[Group]]:
    """Each folder of images or masks that has its counterpart beside it, and the empty groups for their files."""
    children = defaultdict(list)
    for folder in sorted({folder for file in files for folder in _parents(file)} - {''}):
        children[os.path.dirname(folder)].append(folder)
    sides, groups = {}, []
    for beside in children.values():
        images, masks = _with_name(IMAGE_FOLDERS, beside), _with_name(MASK_FOLDERS, beside)
        if images and masks:
            group = Group(defaultdict(list), defaultdict(list), separators='_-/')
            sides |= {folder: Side(IMAGES, group.images) for folder in images}
            sides |= {masks[0]: Side(MASKS, group.masks)} | {folder: Side((), {}) for folder in masks[1:]}
            groups.append(group)
    return sides, groups


def _with_name(names: tuple[str, ...], folders: list[str]) -> list[str]:
    return [folder for name in names for folder in folders if os.path.basename(folder).lower() == name]


def _in_one_folder(files: list[str]) -> Group:
    group = Group(defaultdict(list), defaultdict(list), separators='')
    marked = {file: mark[1] for file in files if _has_suffix(file, MASKS) and (mark := MARK.fullmatch(_stem(file)))}
    unmarked = {_stem(file) for file in files if _has_suffix(file, JPEG) and file not in marked} - set(marked.values())
    for file in files:
        if file in marked:
            group.masks[marked[file]].append(file)
        elif _has_suffix(file, '.png') and _stem(file) in unmarked:
            group.masks[_stem(file)].append(file)
        elif _has_suffix(file, IMAGES):
            group.images[_stem(file)].append(file)
    return group


def _matched(path: Path, group: Group) -> Iterator[Item]:
    masks_of, unmatched = {name: [] for name in group.images}, []
    for name, files in group.masks.items():
        image = _matching_image(name, group)
        (unmatched if image is None else masks_of[image]).extend(files)
    if len(masks_of) == 1 and group.separators and not any(masks_of.values()):
        masks_of, unmatched = dict.fromkeys(masks_of, unmatched), []
    for name, masks in masks_of.items():
        first, *more = group.images[name]
        yield ImageWithMasks(name, str(path), first, tuple(masks))
        yield from (InvalidItem(name, file, 'duplicate name', f'the same name as {first}') for file in more)
    detail = 'no image has a name that the mask belongs to'
    yield from (InvalidItem(file, file, 'no image', detail) for file in unmatched)


def _matching_image(name: str, group: Group) -> str | None:
    """The longest name of an image that the name of a mask begins with: a_1.png is of a_1 rather than of a."""
    ends = [len(name), *(n for n in range(len(name) - 1, 0, -1) if name[n] in group.separators)]
    return next((name[:end] for end in ends if name[:end] in group.images), None)


def _with_unique_names(items: Iterable[Item]) -> Iterator[Item]:
    taken = set()
    for item in items:
        item = item._replace(name=item.location) if item.name in taken else item
        taken.add(item.name)
        yield item


def _from_tables(path: Path, tables: dict[str, list[tuple[int, dict]]]) -> Iterator[Item]:
    locations = {}  # of the names so far
    for table, rows in tables.items():
        for line, row in rows:
            location = f'{table}, line {line}'
            files = [os.path.normpath(os.path.join(os.path.dirname(table), file)) for file in _files_of_row(row)]
            if not files:
                detail = 'file_name and mask_file_name do not both name image files'
                yield InvalidItem(location, location, 'missing key', detail)
                continue
            image, *masks = files
            name = _stem(image)
            missing = next((file for file in files if not os.path.isfile(os.path.join(path, file))), None)
            if name in locations:
                yield InvalidItem(name, location, 'duplicate name', f'the same name as in {locations[name]}')
            elif missing:
                cause = 'no image' if missing == image else 'no mask file'
                yield InvalidItem(name, location, cause, f'{missing} is not there')
            else:
                yield ImageWithMasks(name, str(path), image, tuple(masks))
            locations.setdefault(name, location)


def _rows(path: Path, table: str) -> list[tuple[int, dict]]:
    """Line number and columns of each row, if at least one row names an image and masks.

    Raises:
        SamjaxError: the file cannot be read.
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
        raise SamjaxError(f'{path / table} cannot be read ({error}): repair it, or move it elsewhere') from error
    return rows if any(_files_of_row(row) for _, row in rows) else []


def _json(text: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {}


def _files_of_row(row: dict) -> list[str]:
    """The image and then the masks that a row names; empty if it lacks either."""
    image = next(([row[key]] for key in IMAGE_KEYS if key in row and _has_suffix(row[key], IMAGES)), [])
    for columns in MASK_KEYS:
        for key, value in row.items():
            masks = value if isinstance(value, list) else [value]
            if (
                key not in IMAGE_KEYS
                and columns.fullmatch(key)
                and masks
                and all(_has_suffix(file, MASKS) for file in masks)
            ):
                return image and image + masks
    return []
