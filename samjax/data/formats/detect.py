"""Which format a data set of images with masks has."""

from __future__ import annotations

import pathlib

from samjax.data.formats import coco, folder, sa1b, tfds
from samjax.data.formats.dataset_index import DatasetIndex
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.errors import SamjaxError
from samjax.storage import digest

READER_VERSION = '3'  # changes when the same files are read as other masks, so that they are prepared again
FORMATS = (
    'a folder or tar shards with x.jpg or x.png beside x.json (SA-1B), a JSON of COCO, a folder of images beside a '
    'folder of masks, or tfds:NAME@SPLIT'
)


def open_index(path: str, options: ReadOptions = DEFAULT) -> DatasetIndex:
    """The index of the data set at a path: a file, a folder, or tfds:NAME; `~` is expanded.

    Its digest changes with the options too, and with READER_VERSION.

    Raises:
        SamjaxError: there is nothing at the path, or it has none of the formats.
    """
    index = _open_index(path, options)
    return index._replace(digest=digest.of_strings([index.digest, READER_VERSION, repr(options.changes)]))


def _open_index(path: str, options: ReadOptions) -> DatasetIndex:
    if path.startswith(tfds.PREFIX):
        return tfds.open_index(path)
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise SamjaxError(f"{path} does not exist: data.path and data.eval_path must name a folder, or be 'scenes'")
    if root.suffix.lower() == '.json':
        return coco.open_index(root)
    if index := sa1b.open_index(root):
        return index
    beside = sorted([*root.glob('*.json'), *root.glob('annotations/*.json')])
    coco_files = [file for file in beside if coco.is_coco(file)]
    if len(coco_files) > 1:
        raise SamjaxError(f'{path} has {len(coco_files)} JSON files of COCO: name one of them, such as {coco_files[0]}')
    index = coco.open_index(coco_files[0]) if coco_files else folder.open_index(root, options)
    if index is None:
        raise SamjaxError(f'{path} holds no images with masks: it must be {FORMATS}')
    return index
