"""Which layout a set of images with masks has."""

from __future__ import annotations

import pathlib

from samjax.data.formats import coco, folder, sa1b, tfds
from samjax.data.formats.dataset_index import DatasetIndex
from samjax.errors import SamjaxError

LAYOUTS = (
    'a folder or tar shards with x.jpg or x.png beside x.json (SA-1B), a JSON of COCO, a folder of images beside a '
    'folder of masks, or tfds:NAME@SPLIT'
)


def find(path: str) -> DatasetIndex:
    """The set at a path: file, folder, or tfds:NAME; `~` is expanded.

    Raises SamjaxError, in one sentence, if there is none.
    """
    if path.startswith(tfds.PREFIX):
        return tfds.find(path)
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise SamjaxError(f"{path} does not exist: data.path and data.eval_path must name a folder, or be 'scenes'")
    if place.suffix.lower() == '.json':
        return coco.find(place)
    if found := sa1b.find(place):
        return found
    beside = sorted([*place.glob('*.json'), *place.glob('annotations/*.json')])
    jsons = [file for file in beside if coco.is_coco(file)]
    if len(jsons) > 1:
        raise SamjaxError(f'{path} has {len(jsons)} files of COCO: name one, such as {jsons[0]}')
    found = coco.find(jsons[0]) if jsons else folder.find(place)
    if found is None:
        raise SamjaxError(f'{path} holds no images with masks: it must be {LAYOUTS}')
    return found
