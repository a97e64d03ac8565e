"""Images of any origin, without masks: files, folders, tar files and prepared data sets, under usable file names."""

from __future__ import annotations

import functools
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samjax.data.formats.detect import mask_files
from samjax.data.formats.tar import ByteRange, list_members
from samjax.data.records.prepare import NAMES, PREPARE_AGAIN, PreparationReport
from samjax.data.records.source import open_split, prepared_folder
from samjax.errors import InvalidExample, SamjaxError
from samjax.images.encoded_image import STORED_FORMATS
from samjax.images.open import DEFAULT, SUFFIXES, ImageOptions, open_image, upright_rgb
from samjax.storage import digest, os_errors
from samjax.storage.walk import has_suffix, list_files

TAR = '.tar'
SUFFIX = {'JPEG': '.jpg', 'MPO': '.jpg', 'PNG': '.png', 'WEBP': '.webp', 'BMP': '.bmp', 'TIFF': '.tif', 'GIF': '.gif'}


class LoadedImage(NamedTuple):
    """An image in memory."""

    name: str
    data: bytes  # the file as it is
    suffix: str  # that fits the content of the file: '.jpg', '.png', ..
    image_HW3: np.ndarray  # uint8 RGB, upright
    as_stored: bool  # whether `data` is a JPEG or PNG of just these pixels, so that the bytes may be copied


class ImageCollection(Sequence):
    """The images of some inputs in a fixed order, decoded at access; can be sent to other processes."""

    def __init__(self, names: list[str], items: list[_Item], digest: str, options: ImageOptions):
        self.options = options
        self.names = names  # unique, and none is a folder of another: relative paths without suffix or '..'
        self._items = items
        self.digest = digest  # changes when an image is added, removed or changed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LoadedImage:
        """Raises InvalidExample, see `samjax.images.open.open_image`."""
        return self._items[index].load(self.names[index], self.options)

    def location(self, index: int) -> str:
        """Where an image is stored, for messages."""
        return self._items[index].location


def find_images(inputs: Sequence[str], options: ImageOptions = DEFAULT) -> ImageCollection:
    """The images of image files, of folders and tar files, and of folders that `samjax data prepare` wrote.

    Below a folder, masks of other images there are left out, with a warning.

    Names are paths below the folder or inside the tar file.  If two inputs share one, all names begin with the name of
    the folder or tar file.  A name that is still taken, or that is also a folder of another, gets _2, _3, ..

    Raises:
        SamjaxError: an input is not there, cannot be read, or holds no image.
    """
    items: dict[tuple[Path, str], _Item] = {}  # by the folder or tar that the name is relative to, and the path in it
    for text in inputs:
        path = Path(text).expanduser()
        if not path.exists():
            raise SamjaxError(f'{text} does not exist: name an image, a folder or a .tar file')
        is_root = path.is_dir() or path.suffix.lower() == TAR
        root = path.resolve() if is_root else path.parent.resolve()
        of_input = {(root, item.path): item for item in _items(path)}
        if not of_input:
            kinds = ' '.join(SUFFIXES)
            raise SamjaxError(f'{text} holds no image: name a file that ends in {kinds}, or a folder or .tar of such')
        items |= of_input
    states = [string for item in items.values() for string in (item.path, item.state)]
    names = _unique([(root, _clean(path)) for root, path in items])
    return ImageCollection(names, list(items.values()), digest.of_strings(['', *states, repr(options)]), options)


# ---- names -----------------------------------------------------------------------------------------


def _clean(path: str) -> str:
    """A relative path without suffix, hidden parts or '..'."""
    stem, suffix = os.path.splitext(path)
    parts = [part.lstrip('.') for part in (stem if suffix.lower() in SUFFIXES else path).split('/')]
    return '/'.join(part for part in parts if part) or 'image'


def _unique(names: list[tuple[Path, str]]) -> list[str]:
    """Unique names from a root and a name below it each."""
    counts = Counter(name for _, name in set(names))
    if max(counts.values(), default=0) > 1:
        roots = list(dict.fromkeys(root for root, _ in names))
        titles = _numbered([_clean(root.stem if root.suffix.lower() == TAR else root.name) for root in roots])
        title_of = dict(zip(roots, titles, strict=True))
        return _numbered([f'{title_of[root]}/{name}' for root, name in names])
    return _numbered([name for _, name in names])


def _numbered(names: list[str]) -> list[str]:
    """Each name as it is, or with the first of _2, _3, .. that makes it unlike all others and no folder of them."""
    folders = {folder for name in names for folder in _ancestors(name)}
    wanted, taken, unique = folders.union(names), set(folders), []
    for name in names:
        number, candidate = 1, name
        while candidate in taken or (number > 1 and candidate in wanted):
            number += 1
            candidate = f'{name}_{number}'
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _ancestors(name: str) -> Iterator[str]:
    while name := name.rpartition('/')[0]:
        yield name


# ---- items: images that have not been read yet -----------------------------------------------------


class _File(NamedTuple):
    """An image file, or a member of a tar file."""

    path: str  # below the folder or inside the tar file
    location: str
    state: str  # changes when the image does
    content: ByteRange

    def load(self, name: str, options: ImageOptions) -> LoadedImage:
        try:
            data = self.content.read()
        except OSError as error:
            raise InvalidExample('unreadable image', os_errors.reason(error)) from error
        return _load(name, data, options)


class _Record(NamedTuple):
    """An image of a prepared data set."""

    path: str
    location: str
    state: str
    folder: str
    index: int

    def load(self, name: str, options: ImageOptions) -> LoadedImage:
        try:
            record = _records(self.folder)[self.index]
        except Exception as error:  # ArrayRecord raises what its C++ says
            raise InvalidExample('unreadable record', str(error)) from error
        if record['name'] != os.fsencode(self.path):
            detail = f'record {self.index} is {os.fsdecode(record["name"])!r}: prepare the data set again'
            raise InvalidExample(f'other name than in {NAMES}', detail)
        return _load(name, record['image'], options, int(record['orientation']))


class _Invalid(NamedTuple):
    """A file that is known to be damaged."""

    path: str
    location: str
    state: str
    cause: str
    detail: str

    def load(self, name: str, options: ImageOptions) -> LoadedImage:
        raise InvalidExample(self.cause, self.detail)


_Item = _File | _Record | _Invalid


def _items(path: Path) -> Iterator[_Item]:
    if not path.is_dir():
        yield from _of_file(str(path), path.name, prefix='')
        return
    folder = prepared_folder(path)
    if folder is not None:
        yield from _of_prepared(folder, str(path))
        return
    errors, masks = [], mask_files(path)
    left_out = []
    for file in list_files(path, has_suffix((*SUFFIXES, TAR)), on_error=errors.append):
        below = os.path.relpath(file, path)
        if os.path.abspath(file) in masks:
            left_out.append(file)
        else:
            yield from _of_file(file, below, f'{below}/')
    for error in errors:
        yield _Invalid(os.path.relpath(error.filename, path), error.filename, '', 'unreadable folder', error.strerror)
    if left_out:
        logging.getLogger(__name__).warning(
            '%s: %d files, such as %s, are masks of the images beside them and are left out: name their folder, or the '
            'files, to take them too',
            path, len(left_out), left_out[0],
        )  # fmt: skip


def _of_file(file: str, path: str, prefix: str) -> Iterator[_Item]:
    """An image, or those of a tar file, whose paths begin with `prefix`; nothing if it is neither."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in (*SUFFIXES, TAR):
        return
    try:
        stat = os.stat(file)
    except OSError as error:  # a broken link
        yield _Invalid(path, file, '', 'unreadable image', os_errors.reason(error))
        return
    state = f'{stat.st_size}\0{stat.st_mtime_ns}'
    if suffix == TAR:
        yield from _of_tar(file, path, prefix, state)
    else:
        yield _File(path, file, state, ByteRange(file, 0, stat.st_size))


def _of_tar(file: str, path: str, prefix: str, state: str) -> Iterator[_Item]:
    try:
        for name, content in list_members(file):
            is_hidden = any(part.startswith('.') and part != '..' for part in name.split('/'))
            if not is_hidden and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield _File(f'{prefix}{name}', f'{file}/{name}', f'{content.size}\0{state}', content)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield _Invalid(path, file, state, 'damaged tar', str(error))


def _of_prepared(folder: Path, location: str) -> Iterator[_Item]:
    report = PreparationReport.read(folder)
    try:
        names = os.fsdecode((folder / NAMES).read_bytes()).split('\n')[:-1]
    except OSError as error:
        raise SamjaxError(f'{folder / NAMES} cannot be read ({error.strerror}): {PREPARE_AGAIN}') from None
    if (count := len(set(names))) != len(names) or count != len(_records(str(folder))):
        raise SamjaxError(
            f'{folder / NAMES} has {count} different names in {len(names)} lines, and there are {report.num_kept} '
            f'records: {PREPARE_AGAIN}'
        )
    state = report.fingerprint
    for index, name in enumerate(names):
        yield _Record(name, f'{location}/{name}', state, str(folder), index)


@functools.lru_cache(8)
def _records(folder: str) -> Sequence[dict]:
    return open_split(folder)


def _load(name: str, data: bytes, options: ImageOptions, orientation: int | None = None) -> LoadedImage:
    """orientation: EXIF's 1 .. 8; by default the one that the file states."""
    image, stated, is_scaled = open_image(data, options)
    orientation = orientation or stated
    is_rgb = image.mode == 'RGB' and 'transparency' not in image.info and not is_scaled
    as_stored = image.format in STORED_FORMATS and is_rgb and orientation == stated == 1
    return LoadedImage(name, data, SUFFIX[image.format], upright_rgb(image, orientation), as_stored)
