"""A folder of images and label images, which are matched by their names.

- A folder of images beside one of masks (`IMAGE_FOLDERS`, `MASK_FOLDERS`) with the same subfolders: images/a/x.jpg has
  masks/a/x.png or, one object each, masks/a/x_*.png, masks/a/x-*.png or masks/a/x/*.png.  Two folders that are named
  by `ReadOptions` are such a pair, wherever they are.
- The same with a single image, whose masks may have any names, as in the Data Science Bowl 2018: ID/images, ID/masks.
- Cityscapes: leftImg8bit/train/city/x_leftImg8bit.png has gtFine/train/city/x_gtFine_instanceIds.png; nnU-Net:
  imagesTr/x_0000.png has labelsTr/x.png.
- Both in one folder: x.jpg with x.png, or x with x_mask, x-label, x_seg, x_mask_0, .. (`MARK`).
- metadata.jsonl or metadata.csv as for Hugging Face's imagefolder: `file_name`, and `mask_file_name` or the like.  What
  lies below its folder and is not named in it does not belong to the data set.

Names are equal in any Unicode form, and in any letter case if that is unambiguous.  A single mask file has an object
per value or colour; each of several files is an object.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, in_shards
from samjax.data.formats.file_names import caseless, unicode_form, unique_keys
from samjax.data.formats.json_content import evenly
from samjax.data.formats.label_image import read_mask
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.file import MAX_PIXELS, open_file, read_bytes
from samjax.images.open import FORMATS, JPEG_SUFFIXES, SUFFIXES, image_size
from samjax.storage import digest
from samjax.storage.walk import has_suffix, ignore_error, list_files

TABLES = ('metadata.csv', 'metadata.jsonl')

IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'img_dir', 'input', 'inputs', 'jpegimages', 'leftimg8bit')
# The first that exists is used, unless another has masks of MANY_MORE times as many images: PASCAL VOC has objects and,
# in SegmentationClass, the same by class.
MASK_FOLDERS = (
    *('segmentationobject', 'masks', 'mask', 'labels', 'label', 'annotations', 'annotation', 'ann_dir'),
    *('gt', 'gts', 'ground_truth', 'groundtruth', 'segmentation', 'segmentations', 'segmentationclass'),
    *('target', 'targets', 'gtfine', 'gtcoarse'),
)
MANY_MORE = 10
FEW_COLOURS = 1000  # that a label image has at most, see `mask_files`
NNUNET_FOLDERS = {'imagestr': 'labelstr', 'imagests': 'labelsts', 'imagesval': 'labelsval'}  # images: masks
CHANNEL = re.compile(r'_\d{4}$')  # ends the name of an image of nnU-Net
CITYSCAPES_IMAGE = re.compile(r'_leftImg8bit$', re.IGNORECASE)
# Cityscapes and converters for mmseg write the same masks in several forms, of which the first that exists is used.
MASK_FORMS = ('instanceids', '', 'labelids', 'labeltrainids', 'instancetrainids', 'color')
MASK_FORM = re.compile(
    rf'(.*?)(?:_gt(?:Fine|Coarse))?_({"|".join(filter(None, MASK_FORMS))})', re.IGNORECASE | re.DOTALL
)
MARK = re.compile(r'(.*[^/])[-_](?:masks?|labels?|seg|segmentation)(?:[-_]?\d+)?', re.IGNORECASE | re.DOTALL)
PARTS = re.compile(r'(.*)_parts_\d+', re.DOTALL)  # ADE20K: parts of the objects in x_seg

IMAGE_KEYS = ('file_name', 'image_file_name')
MASK_KEYS = (  # the first that matches a column of image file names
    re.compile(r'(?:mask|label|annotation|segmentation)s?(?:_file_names?)?', re.IGNORECASE),
    re.compile(r'.*file_names?', re.IGNORECASE),
)
SEPARATORS = '_-/'
OTHER_FORM = 'mask file(s) that hold the same masks in another form'  # cause


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
        image = read_bytes(Path(self.folder, self.location), 'unreadable image')
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
    separators: str  # characters that may follow an image's name in the name of its mask; none: they are equal
    has_channels: bool = False  # whether names of images end in the number of a channel


class Assignment(NamedTuple):
    """Which masks belong to which image of a group."""

    masks: dict[str, list[str]]  # of each image by its name, perhaps none
    unmatched: dict[str, list[str]]  # by the name of the mask
    other_case: list[str]  # mask files whose names differ from their image's in letter case
    other_forms: list[str]  # mask files that hold the masks of others in another form, and are not used

    @property
    def num_annotated(self) -> int:
        return sum(map(bool, self.masks.values()))


class Matches(NamedTuple):
    """The images with masks below a folder, and what to say about other files."""

    items: list[Item]
    ignored: dict[str, list[str]]  # cause -> files
    other_case: list[str]  # see `Assignment`

    @property
    def masks(self) -> set[str]:
        return {file for item in self.items if isinstance(item, ImageWithMasks) for file in item.masks}

    @property
    def num_annotated(self) -> int:
        return sum(isinstance(item, ImageWithMasks) and bool(item.masks) for item in self.items)


def open_index(path: Path, options: ReadOptions = DEFAULT) -> DatasetIndex | None:
    """The images with masks below a folder; None if nothing there has one of the forms above.

    Raises:
        SamjaxError: a folder that the options name is not there, or holds no image.
    """
    if not path.is_dir():
        return None
    if options.images:
        tables, matches = {}, _matches(path, [[_named_group(path, options)]])
    else:
        tables, matches = _recognized(path)
    if not matches.items:
        return None
    decisions = {'mask_kind': options.mask_kind, 'max_pixels': options.image.max_pixels}
    items = [item._replace(**decisions) if isinstance(item, ImageWithMasks) else item for item in matches.items]
    # A location that is a row of a table, or a broken link, counts by its name.
    read = sorted({*tables, *matches.masks, *(item.location for item in items)})
    state = digest.of_files(path, ((file, path / file) for file in read))
    used = {*read, *(file for files in matches.ignored.values() for file in files)}
    ignored, warnings = Causes(), Causes()
    for cause, files in matches.ignored.items():
        ignored.add(cause, next(iter(files), ''), len(files))
    warnings.add(
        'mask name(s) that differ from the image in letter case',
        next(iter(matches.other_case), ''), len(matches.other_case),
    )  # fmt: skip
    return DatasetIndex(
        'images and masks',
        in_shards(_with_unique_names(items)),
        state,
        num_annotated=matches.num_annotated,
        files={os.path.abspath(path / file) for file in used},
        ignored=ignored,
        warnings=warnings,
    )


def mask_files(path: Path) -> set[str]:
    """Paths below a folder of the files that are masks of other images there, for who looks for images alone.

    x.png beside x.jpg is a mask only if most images of the folder have such a PNG, and it has few colours.
    """
    matches = _recognized(path)[1]
    images = [item for item in matches.items if isinstance(item, ImageWithMasks)]
    twins = {file for item in images for file in item.masks if caseless(_stem(file)) == caseless(_stem(item.location))}
    masks = {*matches.masks, *matches.ignored.get(OTHER_FORM, ())}
    folders = {os.path.dirname(file) for file in masks} - {os.path.dirname(item.location) for item in images}
    unmatched = (item.location for item in matches.items if isinstance(item, UnmatchedMask))
    masks |= {file for file in unmatched if os.path.dirname(file) in folders}
    num_with_twin = sum(not twins.isdisjoint(item.masks) for item in images)
    if twins and (
        2 * num_with_twin <= len(images) or not all(_has_few_colours(path / file) for file in evenly(sorted(twins), 10))
    ):
        return masks - twins
    return masks


def _has_few_colours(file: Path) -> bool:
    """As label images have, and photographs do not; true if it cannot be read."""
    try:
        with open_file(file, FORMATS) as image:
            return image.convert('RGB').getcolors(FEW_COLOURS) is not None
    except Exception:  # pillow raises nearly anything on damaged files
        return True


# ---- which files belong together -------------------------------------------------------------------


def _recognized(path: Path) -> tuple[dict[str, list[tuple[int, dict]]], Matches]:
    """Tables that are used, and images with masks, by the names of folders and files."""
    wanted = has_suffix(SUFFIXES)
    paths = list_files(path, lambda name: wanted(name) or name in TABLES, every_link=True, on_error=ignore_error)
    files = [os.path.relpath(file, path) for file in paths]
    images = [file for file in files if _has_suffix(file)]
    tables, unreadable = {}, []
    for file in files:
        if os.path.basename(file) in TABLES:
            try:
                tables[file] = _rows(path, file)
            except (OSError, csv.Error) as error:
                unreadable.append(f'{file} ({error})')
    tables = {file: rows for file, rows in tables.items() if rows}
    matches = _matches(path, _groups(images))
    if tables:
        below = {os.path.dirname(table) for table in tables}
        others = [file for file in images if below.isdisjoint(_parents(file))]
        from_tables = list(_from_tables(path, tables, images))
        with_tables = _matches(path, _groups(others))
        with_tables = with_tables._replace(items=[*from_tables, *with_tables.items])
        if with_tables.num_annotated >= matches.num_annotated:
            matches = with_tables
        else:
            matches.ignored['table(s) of fewer images'] = list(tables)
            tables = {}
    if unreadable:
        matches.ignored['table(s) that cannot be read'] = unreadable
    return tables, matches


def _matches(path: Path, alternatives: Iterable[list[Group]]) -> Matches:
    """alternatives: groups of the same images, of which that with the most masks is used; see `MASK_FOLDERS`."""
    matches = Matches([], defaultdict(list), [])
    for groups in alternatives:
        assignments = [_assign(group) for group in groups]
        chosen = 0
        for number, assignment in enumerate(assignments):
            if assignment.num_annotated > MANY_MORE * assignments[chosen].num_annotated:
                chosen = number
        matches.items.extend(_items(path, groups[chosen], assignments[chosen]))
        matches.other_case.extend(assignments[chosen].other_case)
        others = [group for number, group in enumerate(groups) if number != chosen]
        other_forms = [file for group in others for files in group.masks.values() for file in files]
        if other_forms := assignments[chosen].other_forms + other_forms:
            matches.ignored[OTHER_FORM] += other_forms
    return matches


def _has_suffix(file: object, suffixes: Collection[str] = SUFFIXES) -> bool:
    return isinstance(file, str) and os.path.splitext(file)[1].lower() in suffixes


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _parents(file: str) -> Iterator[str]:
    """Folders that a file lies in, the innermost first, '' last."""
    while file:
        file = os.path.dirname(file)
        yield file


def _without_city(name: str) -> str:
    return caseless(CITYSCAPES_IMAGE.sub('', name))


def _groups(files: list[str]) -> list[list[Group]]:
    """Images and masks to be matched with each other, see `_matches`; files that are neither are left out."""
    names_in, alternatives = _folders(files)
    loose = []
    for file in files:
        folder = next((folder for folder in _parents(file) if folder in names_in), None)
        if folder is None:
            loose.append(file)
        else:
            name = os.path.join(os.path.dirname(folder), os.path.relpath(_stem(file), folder))
            names_in[folder][name].append(file)
    alternatives = [*map(_without_channels, alternatives), [_in_one_folder(loose)]]
    alternatives = [[group for group in groups if group.images and group.masks] for groups in alternatives]
    return [groups for groups in alternatives if groups]


def _folders(files: list[str]) -> tuple[dict[str, dict[str, list[str]]], list[list[Group]]]:
    """Files by name, empty yet, for each folder of images or masks that has its counterpart beside it; their groups."""
    children = defaultdict(list)
    for folder in sorted({folder for file in files for folder in _parents(file)} - {''}):
        children[os.path.dirname(folder)].append(folder)
    names_in, alternatives = {}, []
    for beside in children.values():
        pairs = [(_with_name(IMAGE_FOLDERS, beside), _with_name(MASK_FOLDERS, beside), False)]
        for images, masks in NNUNET_FOLDERS.items():
            pairs.append((_with_name([images], beside), _with_name([masks], beside), True))
        for images, masks, has_channels in pairs:
            if images and masks:
                names_in |= dict.fromkeys(images, defaultdict(list))
                names_in |= {folder: defaultdict(list) for folder in masks}
                separators = '' if has_channels else SEPARATORS
                alternatives.append(
                    [Group(names_in[images[0]], names_in[folder], separators, has_channels) for folder in masks]
                )
    return names_in, alternatives


def _without_channels(groups: list[Group]) -> list[Group]:
    """The groups with names of images that do not end in the number of a channel, if they are nnU-Net's."""
    if not groups[0].has_channels:
        return groups
    images = defaultdict(list)
    for name, files in groups[0].images.items():
        images[CHANNEL.sub('', name)] += files
    return [group._replace(images=images) for group in groups]


def _with_name(names: Iterable[str], folders: list[str]) -> list[str]:
    return [folder for name in names for folder in folders if os.path.basename(folder).lower() == name]


def _in_one_folder(files: list[str]) -> Group:
    group = Group(defaultdict(list), defaultdict(list), separators='')
    marked = {file: mark[1] for file in files if (mark := MARK.fullmatch(_stem(file)))}
    with_mark = set(map(caseless, marked.values()))
    jpegs = {
        caseless(_stem(file)) for file in files if _has_suffix(file, JPEG_SUFFIXES) and file not in marked
    } - with_mark
    for file in files:
        name = _stem(file)
        if file in marked:
            group.masks[marked[file]].append(file)
        elif _has_suffix(file, ('.png',)) and caseless(name) in jpegs:
            group.masks[name].append(file)
        elif not ((parts := PARTS.fullmatch(name)) and caseless(parts[1]) in with_mark):
            group.images[name].append(file)
    return group


def _named_group(path: Path, options: ReadOptions) -> Group:
    """The images and masks of the two folders that the options name.

    Raises:
        SamjaxError: one of them is not there, or holds no image.
    """
    files = {}
    folders = [os.path.abspath(path / os.path.expanduser(name)) for name in (options.images, options.masks)]
    for folder, option in zip(folders, ('images', 'masks'), strict=True):
        if not os.path.isdir(folder):
            raise SamjaxError(f'{folder} is no folder: {option} must name one, relative to {path}')
        files[folder] = list(list_files(Path(folder), has_suffix(SUFFIXES), every_link=True, on_error=ignore_error))
        if not files[folder]:
            raise SamjaxError(
                f'{folder} holds no image file: {option} must name a folder that does, relative to {path}'
            )
    root = os.path.join(os.path.abspath(path), '')
    group = Group(defaultdict(list), defaultdict(list), SEPARATORS)
    if folders[0] == folders[1]:
        return _in_one_folder([file.removeprefix(root) for file in files[folders[0]]])
    for folder, other, names in zip(folders, folders[::-1], (group.images, group.masks), strict=True):
        nested = os.path.join(other, '') if other.startswith(os.path.join(folder, '')) else None
        for file in files[folder]:
            if nested is None or not file.startswith(nested):
                names[_stem(os.path.relpath(file, folder))].append(file.removeprefix(root))
    return group


def _other_forms(names: Iterable[str]) -> set[str]:
    """Names of masks that have a better form among `names`, see `MASK_FORMS`."""
    forms = defaultdict(dict)  # name without form -> form -> name
    for name in names:
        form = MASK_FORM.fullmatch(name)
        forms[form[1] if form else name][form[2].lower() if form else ''] = name
    ordered = [sorted(name_of.items(), key=lambda item: MASK_FORMS.index(item[0])) for name_of in forms.values()]
    return {name for names in ordered for _, name in names[1:]}


class UnmatchedMask(InvalidItem):
    """A mask file without an image."""


def _assign(group: Group) -> Assignment:
    dropped = _other_forms(group.masks)
    masks_of = {name: [] for name in group.images}
    unmatched = {name: files for name, files in group.masks.items() if name not in dropped}
    other_case, other_forms = [], [file for name in group.masks if name in dropped for file in group.masks[name]]
    # Each way to compare names is tried for the masks for which the ones before it lead nowhere.
    for key in (str, unicode_form, caseless, _without_city):
        names = unique_keys(group.images, key) if unmatched else {}
        for name in list(unmatched):
            image = _longest_start(key(name), names, group.separators)
            if image is not None:
                files = unmatched.pop(name)
                masks_of[image] += files
                other_case += files if key is caseless else []
    if len(masks_of) == 1 and group.separators and not any(masks_of.values()):
        masks_of, unmatched = dict.fromkeys(masks_of, [file for files in unmatched.values() for file in files]), {}
    return Assignment(masks_of, unmatched, other_case, other_forms)


def _items(path: Path, group: Group, assignment: Assignment) -> Iterator[Item]:
    """An item for each image, and for each mask file that has none."""
    for name, masks in assignment.masks.items():
        first, *more = group.images[name]
        if more and group.has_channels:
            detail = f'{len(more) + 1} files hold a channel each, such as {more[0]}: save one image in RGB instead'
            yield InvalidItem(name, first, 'several channels', detail)
            continue
        yield ImageWithMasks(name, str(path), first, tuple(sorted(masks)))
        yield from (InvalidItem(name, file, 'duplicate name', f'the same name as {first}') for file in more)
    detail = 'no image has a name that the mask belongs to'
    unmatched = (file for files in assignment.unmatched.values() for file in files)
    yield from (UnmatchedMask(file, file, 'no image', detail) for file in unmatched)


def _longest_start(name: str, names: Mapping[str, str], separators: str) -> str | None:
    """What belongs to the longest name that `name` begins with: a_1.png is of a_1 rather than of a."""
    ends = [len(name), *(n for n in range(len(name) - 1, 0, -1) if name[n] in separators)]
    return next((names[name[:end]] for end in ends if name[:end] in names), None)


def _with_unique_names(items: Iterable[Item]) -> Iterator[Item]:
    taken = set()
    for item in items:
        item = item._replace(name=item.location) if item.name in taken else item
        taken.add(item.name)
        yield item


# ---- tables ----------------------------------------------------------------------------------------


def _from_tables(path: Path, tables: dict[str, list[tuple[int, dict]]], listed: list[str]) -> Iterator[Item]:
    """An item for each row.  listed: image files below `path`."""
    locations = {}  # of the names so far
    in_form = unique_keys(listed, unicode_form)
    for table, rows in tables.items():
        for line, row in rows:
            location = f'{table}, line {line}'
            files = [os.path.normpath(os.path.join(os.path.dirname(table), file)) for file in _files_of_row(row)]
            if not files:
                detail = 'file_name and mask_file_name do not both name image files'
                yield InvalidItem(location, location, 'missing key', detail)
                continue
            files = [file if os.path.lexists(path / file) else in_form.get(unicode_form(file), file) for file in files]
            image, *masks = files
            name = _stem(image)
            missing = next((file for file in files if not os.path.isfile(path / file)), None)
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
        OSError, csv.Error: the file cannot be read.
    """
    # A byte that is not UTF-8 makes a name that no file has, which is reported with its line.
    with open(path / table, encoding='utf-8-sig', errors='replace', newline='') as file:
        if table.endswith('.csv'):
            reader = csv.DictReader(file, restkey='')
            rows = [(reader.line_num, row) for row in reader]
        else:
            rows = [(line, _json(text)) for line, text in enumerate(file, 1) if text.strip()]
    return rows if any(_files_of_row(row) for _, row in rows) else []


def _json(text: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {}


def _files_of_row(row: dict) -> list[str]:
    """The image and then the masks that a row names; empty if it lacks either."""
    image = next(([row[key]] for key in IMAGE_KEYS if key in row and _has_suffix(row[key])), [])
    for columns in MASK_KEYS:
        for key, value in row.items():
            masks = value if isinstance(value, list) else [value]
            if key not in IMAGE_KEYS and columns.fullmatch(key) and masks and all(map(_has_suffix, masks)):
                return image and image + masks
    return []
