"""Which layout a data set of images with masks has: the one by which most of its images have masks."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable

from samjax.data.formats import coco, folder, labelme, sa1b, tfds
from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import DatasetIndex, InvalidItem
from samjax.data.formats.json_content import labelme_content
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.formats.tar import whole_file
from samjax.errors import SamjaxError
from samjax.images.open import SUFFIXES
from samjax.storage import digest
from samjax.storage.walk import has_suffix, list_files

READER_VERSION = '3'  # changes when the same files are read as other masks, so that they are prepared again
FORMATS = (
    'a folder or tar shards with x.jpg or x.png beside x.json (SA-1B), a JSON of COCO, a folder of images beside a '
    "folder of masks (name them by --images and --masks, or data.images and data.masks), labelme's JSON files beside "
    'images, or tfds:NAME@SPLIT'
)
ARCHIVES = ('.zip', '.gz', '.tgz', '.bz2', '.xz', '.7z', '.rar', '.zst')
SIMILAR = 0.5  # another layout that fits this many times as many images as the chosen one is a warning
COCO_FILES = 50  # JSON files at most that are read to find those of COCO, the largest ones
KINDS = {**dict.fromkeys(SUFFIXES, 'image(s)'), '.json': 'JSON file(s)', '.tar': 'tar file(s)'}


def open_index(path: str, options: ReadOptions = DEFAULT) -> DatasetIndex:
    """The index of the data set at a path: a file, a folder, or tfds:NAME; `~` is expanded.

    Its digest changes with the layout and the options too, and with READER_VERSION.

    Raises:
        SamjaxError: there is nothing at the path, it has none of the layouts or not that of the options, or it holds
            several COCO files.
    """
    return _identified(tfds.open_index(path) if path.startswith(tfds.PREFIX) else _open_index(path, options), options)


def open_shards(path: str, numbers: str, options: ReadOptions) -> DatasetIndex:
    """As `open_index`, of the tar shards of SA-1B that have these numbers, see `samjax.data.formats.sa1b`."""
    return _identified(sa1b.open_shards(path, numbers), options)


def _identified(index: DatasetIndex, options: ReadOptions) -> DatasetIndex:
    """With a digest that changes with how the files are read, too."""
    strings = [index.digest, READER_VERSION, index.layout, repr(options.changes)]
    return index._replace(digest=digest.of_strings(strings))


def _open_index(path: str, options: ReadOptions) -> DatasetIndex:
    root = pathlib.Path(path).expanduser()
    if not os.path.exists(root):
        raise SamjaxError(f"{path} does not exist: data.path and data.eval_path must name a folder, or be 'scenes'")
    files, unreadable = _files_below(root)
    indices, several = {}, None
    for name in [options.layout or 'folder'] if options.layout or options.images else OPEN:
        try:
            index = OPEN[name](root, options)
        except _SeveralFilesError as error:
            several = error
        else:
            indices |= {name: index} if index is not None else {}
    # If nothing has a mask, the layout with the most items tells what is wrong with them.
    order = sorted(indices, key=lambda name: (indices[name].num_annotated, _num_items(indices[name])), reverse=True)
    if several and (not order or indices[order[0]].num_annotated <= several.num_annotated):
        raise several
    if not order:
        raise SamjaxError(_why_nothing(path, root, options, _unused(root, files, unreadable)))
    chosen, counts = indices[order[0]], {name: indices[name].num_annotated for name in order}
    counts = {name: count for name, count in counts.items() if count or name == order[0]}
    warnings = Causes(chosen.warnings)
    for name, count in counts.items():
        if name != order[0] and count >= SIMILAR * chosen.num_annotated:
            remedy = f"if you mean that, give --layout {name} or data.layout='{name}'"
            warnings.add(f"image(s) could also be read by the layout '{name}': {remedy}", '', count)
    ignored = _unused(root, (file for file in files if file not in chosen.files), unreadable)
    ignored.add_all(chosen.ignored)
    return chosen._replace(ignored=ignored, warnings=warnings, images_by_layout=counts)


def _files_below(root: pathlib.Path) -> tuple[list[str], Causes]:
    """Absolute paths of the files below a folder that some layout may read, and the folders that cannot be read.

    Raises:
        SamjaxError: it is the folder itself.
    """
    causes, root = Causes(), os.path.abspath(root)

    def note(error: OSError) -> None:
        if os.path.abspath(error.filename) == root:
            raise SamjaxError(f'{root} cannot be read ({error.strerror}): change its permissions') from error
        causes.add('folder(s) that cannot be read', f'{os.path.relpath(error.filename, root)} ({error.strerror})')

    files = list(list_files(pathlib.Path(root), has_suffix(KINDS), on_error=note)) if os.path.isdir(root) else []
    return files, causes


def _unused(root: pathlib.Path, files: Iterable[str], unreadable: Causes) -> Causes:
    """Files by what they are, and folders that cannot be read."""
    causes = Causes(unreadable)
    for file in files:
        causes.add(KINDS[os.path.splitext(file)[1].lower()], os.path.relpath(file, root))
    return causes


def _why_nothing(path: str, root: pathlib.Path, options: ReadOptions, unused: Causes) -> str:
    causes = f' (it has {"; ".join(unused.lines())})' if unused else ''
    if options.layout:
        return f"{path} holds nothing of the layout '{options.layout}'{causes}: name another of {', '.join(OPEN)}"
    if root.is_file() and root.suffix.lower() in ARCHIVES:
        return f'{path} is an archive: unpack it and name the folder'
    return f'{path} holds no images with masks{causes}: it must be {FORMATS}'


def _num_items(index: DatasetIndex) -> float:
    return sum(shard.weight for shard in index.shards)


def mask_files(root: pathlib.Path) -> set[str]:
    """Absolute paths of the pictures below a folder that are masks of other images there."""
    files = {os.path.abspath(root / file) for file in folder.mask_files(root)}
    for file in _coco_files(root, b'"segments_info"'):
        with contextlib.suppress(SamjaxError):
            shards = coco.open_index(file).shards
            files |= {item.png for shard in shards for item in shard.items() if isinstance(item, coco.Panoptic)}
    return files


# ---- layouts ---------------------------------------------------------------------------------------


class _SeveralFilesError(SamjaxError):
    """A folder has several COCO files, which together list `num_annotated` images."""

    def __init__(self, message: str, num_annotated: int):
        super().__init__(message)
        self.num_annotated = num_annotated


def _open_coco(root: pathlib.Path, options: ReadOptions) -> DatasetIndex | None:
    """The data set of a JSON file, or of the only one of COCO in a folder.

    Raises:
        _SeveralFilesError: there are several; SamjaxError: the file is not of COCO.
    """
    if root.is_file():
        is_other = root.suffix.lower() != '.json' or labelme_content(whole_file(str(root))) is not None
        return None if is_other and not options.layout else _counted(root)
    indices = {file: _counted(file) for file in _coco_files(root, b'"segment')}
    if len(indices) > 1:
        sizes = [f'{file} with {index.num_annotated} images' for file, index in indices.items()]
        total = sum(index.num_annotated for index in indices.values())
        raise _SeveralFilesError(f'{root} has {len(sizes)} JSON files of COCO: name one, {" or ".join(sizes)}', total)
    return next(iter(indices.values()), None)


def _counted(file: pathlib.Path) -> DatasetIndex:
    """The index of a COCO file with the number of images that are there, and the files that it reads."""
    index = coco.open_index(file)
    items = [item for shard in index.shards for item in shard.items() if not isinstance(item, InvalidItem)]
    files = {path for item in items for path in (item.path, getattr(item, 'png', item.path))}
    return index._replace(num_annotated=len(items), files={os.path.abspath(path) for path in (file, *files)})


def _coco_files(root: pathlib.Path, word: bytes) -> list[pathlib.Path]:
    """JSON files of COCO in a folder or its `annotations` that contain a word."""
    beside = {file.stem for file in _entries(root) if file.suffix.lower() in SUFFIXES}
    files = [
        file
        for below in (root, root / 'annotations')
        for file in _entries(below)
        if file.suffix.lower() == '.json' and not file.name.startswith('.') and os.path.isfile(file)
    ]
    # SA-1B's and labelme's have images of the same name.
    likely = sorted(files, key=lambda file: (file.stem in beside, -os.path.getsize(file), file))[:COCO_FILES]
    return sorted(file for file in likely if _contains(file, word) and coco.is_coco(file))


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _contains(file: pathlib.Path, word: bytes) -> bool:
    try:
        return word in file.read_bytes()
    except OSError:
        return False


# Of several that fit the same images, the first is chosen.
OPEN: dict[str, Callable[[pathlib.Path, ReadOptions], DatasetIndex | None]] = {
    'sa1b': sa1b.open_index,
    'coco': _open_coco,
    'labelme': labelme.open_index,
    'folder': folder.open_index,
}
