"""Images as they come, without masks: files, folders, tar files and prepared sets, under names that files can have."""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from samjax.data.formats.dataset_index import InvalidExample
from samjax.data.formats.sa1b import Part, list_files
from samjax.data.records.builder import SPLIT
from samjax.data.records.prepare import NAMES, Report
from samjax.data.records.record import STORED, open_image
from samjax.data.records.source import prepared
from samjax.errors import SamjaxError
from samjax.images.encoded_image import SYMMETRY, apply_symmetry

IMAGE = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
TAR = '.tar'
SUFFIX = {'JPEG': '.jpg', 'MPO': '.jpg', 'PNG': '.png', 'WEBP': '.webp', 'BMP': '.bmp', 'TIFF': '.tif', 'GIF': '.gif'}


class LoadedImage(NamedTuple):
    """One image."""

    name: str
    data: bytes  # the file as it is
    suffix: str  # of such a file, by what it holds: '.jpg', '.png', ..
    image_HW3: np.ndarray  # uint8 RGB, upright
    as_stored: bool  # whether `data` is a JPEG or PNG that shows just this, so that the bytes may be copied


class ImageCollection(Sequence):
    """The images of some inputs in a fixed order, decoded when asked for; goes to other processes."""

    def __init__(self, names: list[str], items: list[_Item], digest: str):
        self.names = names  # unique, and none is a folder of another: relative paths without suffix or '..'
        self._items = items
        self.digest = digest  # changes when an image is added, removed or changed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LoadedImage:
        """Raises InvalidExample if it is no whole image, or one that nobody but its owner knows how to show."""
        return self._items[index].load(self.names[index])

    def place(self, index: int) -> str:
        """Where an image lies, for people."""
        return self._items[index].place


def find_images(inputs: Sequence[str]) -> ImageCollection:
    """The images of image files, of folders and tar files, and of folders that `samjax data prepare` wrote.

    Names are paths below the folder or inside the tar.  If two inputs share one, all names begin with the folder's or
    the tar's own name.  A name that is still taken, or that is also a folder of another, gets _2, _3, ..

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
        found = {(root, item.inner): item for item in _items(path)}
        if not found:
            kinds = ' '.join(IMAGE)
            raise SamjaxError(f'{text} holds no image: name a file that ends in {kinds}, or a folder or .tar of such')
        items |= found
    digest = hashlib.sha256()
    for item in items.values():
        digest.update(os.fsencode(f'\0{item.inner}\0{item.mark}'))
    names = _unique([(root, _clean(inner)) for root, inner in items])
    return ImageCollection(names, list(items.values()), digest.hexdigest()[:32])


# ---- names -----------------------------------------------------------------------------------------


def _clean(inner: str) -> str:
    """A relative path without suffix, hidden parts or '..'."""
    stem, suffix = os.path.splitext(inner)
    parts = [part.lstrip('.') for part in (stem if suffix.lower() in IMAGE else inner).split('/')]
    return '/'.join(part for part in parts if part) or 'image'


def _unique(names: list[tuple[Path, str]]) -> list[str]:
    """Of a root and a name below it each."""
    counts = Counter(name for _, name in set(names))
    if max(counts.values(), default=0) > 1:
        roots = list(dict.fromkeys(root for root, _ in names))
        titles = _numbered([_clean(root.stem if root.suffix.lower() == TAR else root.name) for root in roots])
        title_of = dict(zip(roots, titles, strict=True))
        return _numbered([f'{title_of[root]}/{name}' for root, name in names])
    return _numbered([name for _, name in names])


def _numbered(names: list[str]) -> list[str]:
    """Each name as it is, or with the first of _2, _3, .. that makes it unlike all others and no folder of them."""
    folders = {folder for name in names for folder in _above(name)}
    wanted, taken, unique = folders.union(names), set(folders), []
    for name in names:
        number, found = 1, name
        while found in taken or (number > 1 and found in wanted):
            number += 1
            found = f'{name}_{number}'
        taken.add(found)
        unique.append(found)
    return unique


def _above(name: str) -> Iterator[str]:
    while name := name.rpartition('/')[0]:
        yield name


# ---- what there is ---------------------------------------------------------------------------------


class _File(NamedTuple):
    """An image file, or a member of a tar file."""

    inner: str  # path below the folder or inside the tar
    place: str
    mark: str  # changes when the image does
    part: Part

    def load(self, name: str) -> LoadedImage:
        try:
            data = self.part.read()
        except OSError as error:
            raise InvalidExample('unreadable image', str(error)) from error
        return _loaded(name, data)


class _Record(NamedTuple):
    """An image of a prepared set."""

    inner: str
    place: str
    mark: str
    folder: str
    index: int

    def load(self, name: str) -> LoadedImage:
        try:
            record = _records(self.folder)[self.index]
        except Exception as error:  # ArrayRecord raises what its C++ says
            raise InvalidExample('unreadable record', str(error)) from error
        return _loaded(name, record['image'], int(record['orientation']))


class _Bad(NamedTuple):
    """Something that is known not to be whole."""

    inner: str
    place: str
    mark: str
    cause: str
    detail: str

    def load(self, name: str) -> LoadedImage:
        raise InvalidExample(self.cause, self.detail)


_Item = _File | _Record | _Bad


def _items(path: Path) -> Iterator[_Item]:
    if not path.is_dir():
        yield from _of_file(str(path), path.name, inside='')
        return
    folder = prepared(path)
    if folder is not None and (folder / 'dataset_info.json').is_file():
        yield from _of_prepared(folder, str(path))
        return
    for file in list_files(path, (*IMAGE, TAR)):
        inner = Path(file).relative_to(path).as_posix()
        yield from _of_file(file, inner, f'{inner}/')


def _of_file(file: str, inner: str, inside: str) -> Iterator[_Item]:
    """An image, or those of a tar, whose paths are to begin with `inside`; nothing if it is neither."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in (*IMAGE, TAR):
        return
    try:
        stat = os.stat(file)
    except OSError as error:  # a link to nowhere
        yield _Bad(inner, file, '', 'unreadable image', str(error))
        return
    mark = f'{stat.st_size}\0{stat.st_mtime_ns}'
    if suffix == TAR:
        yield from _of_tar(file, inner, inside, mark)
    else:
        yield _File(inner, file, mark, Part(file, 0, stat.st_size))


def _of_tar(file: str, inner: str, inside: str, mark: str) -> Iterator[_Item]:
    """Images by where they lie in the tar; reads only headers."""
    try:
        with tarfile.open(file, 'r:') as tar:
            for member in tar:
                name = os.path.normpath(member.name).lstrip('/')
                hidden = any(part.startswith('.') and part != '..' for part in name.split('/'))
                if member.isfile() and not hidden and os.path.splitext(name)[1].lower() in IMAGE:
                    part = Part(file, member.offset_data, member.size)
                    yield _File(f'{inside}{name}', f'{file}/{name}', f'{member.size}\0{mark}', part)
                tar.members = []  # a shard has tens of thousands; the module would keep them all
    except (tarfile.TarError, EOFError, OSError) as error:
        yield _Bad(inner, file, mark, 'damaged tar', str(error))


def _of_prepared(folder: Path, place: str) -> Iterator[_Item]:
    report = Report.read(folder)
    mark = f'{report.digest} {report.share:g}'
    for index, name in enumerate((folder / NAMES).read_text().split('\n')[:-1]):
        yield _Record(name, f'{place}/{name}', mark, str(folder), index)


@functools.lru_cache(8)
def _records(folder: str) -> Sequence[dict]:
    reader = tfds.builder_from_directory(folder)
    return reader.as_data_source(SPLIT, decoders={'image': tfds.decode.SkipDecoding()})


# ---- from bytes to pixels --------------------------------------------------------------------------


def _loaded(name: str, data: bytes, orientation: int | None = None) -> LoadedImage:
    """orientation: as EXIF counts it; without one, EXIF's own.  What is refused is what `data prepare` refuses."""
    image, stated = open_image(data)
    orientation = orientation or stated
    transparent = image.info.pop('transparency', None) is not None  # says how to show it; makes pillow warn
    as_stored = image.format in STORED and image.mode == 'RGB' and not transparent and orientation == stated == 1
    pixels_HW3 = apply_symmetry(np.asarray(image.convert('RGB')), SYMMETRY[orientation])
    return LoadedImage(name, data, SUFFIX[image.format], np.ascontiguousarray(pixels_HW3), as_stored)
