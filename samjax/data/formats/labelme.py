"""labelme: an image and a JSON of its shapes, in folders at any depth; the JSON may hold the image itself.

Polygons, rectangles and circles are filled as COCO's are, by pycocotools; labelme's own exporter fills them by pillow,
with a third of a pixel more along the outline on average.  Shapes with the same label and group_id are one object.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from samjax.data.formats import coco_json
from samjax.data.formats.causes import Causes
from samjax.data.formats.dataset_index import AnnotatedImage, DatasetIndex, InvalidItem, Item, in_shards
from samjax.data.formats.json_content import evenly, labelme_content
from samjax.data.formats.read_options import DEFAULT, ReadOptions
from samjax.data.formats.tar import whole_file
from samjax.errors import InvalidExample, one_line, printable
from samjax.images.file import open_file, read_bytes
from samjax.images.open import SUFFIXES, upright_size
from samjax.masks import rle
from samjax.storage import digest
from samjax.storage.walk import has_suffix, ignore_error, list_files

JSON = ('.json',)
CIRCLE_CORNERS = 720  # of the polygon that a circle is filled as; 0.01 px off at a radius of 1000 px
WITHOUT_AREA = ('point', 'points', 'line', 'linestrip')
IGNORED_LABELS = ('__ignore__', '_background_')  # labelme's exporters do not write objects of them


def open_index(path: Path, options: ReadOptions = DEFAULT) -> DatasetIndex | None:
    """The images below a folder that have a JSON, and those beside one of these; or those of a single JSON file.

    None if no JSON there is labelme's.  `options` have no effect here; masks are not files.
    """
    del options
    path = Path(os.path.abspath(path))
    folder = path if path.is_dir() else path.parent
    files = list(list_files(path, has_suffix(SUFFIXES + JSON), on_error=ignore_error)) if path.is_dir() else [str(path)]
    jsons = [file for file in files if _suffix(file) in JSON]
    images = {os.path.splitext(file)[0]: file for file in reversed(files) if _suffix(file) in SUFFIXES}
    paired = [file for file in jsons if os.path.splitext(file)[0] in images]
    sampled = evenly(paired)
    num_annotated = len(paired) * sum(map(_is_labelme, sampled)) / max(len(sampled), 1)
    items, used = [], set()
    for file in jsons:
        image = images.get(os.path.splitext(file)[0])
        if image is None:
            content = labelme_content(whole_file(file))
            if content is None:
                continue  # of something else
            image = _image_file(content, file)
            num_annotated += 1
        items.append(_item(folder, file, image))
        used |= {file, image} - {None}
    if not num_annotated:
        return None
    folders = {os.path.dirname(file) for file in used}
    for file in files:
        if _suffix(file) in SUFFIXES and file not in used and os.path.dirname(file) in folders:
            items.append(_item(folder, None, file))
            used.add(file)
    items = sorted(_with_unique_names(items), key=lambda item: item.name)
    state = digest.of_files(path, ((os.path.relpath(file, folder), file) for file in sorted(used)))
    return DatasetIndex('labelme', in_shards(items), state, num_annotated=round(num_annotated), files=used)


class LabelmeImage(NamedTuple):
    """An image with a JSON of shapes."""

    name: str  # path without suffix below the folder
    location: str  # of the JSON; of the image if it has none
    json: str | None  # path; None: the image has no shapes
    image: str | None  # path; None: in the JSON

    def load(self) -> AnnotatedImage:
        """Raises InvalidExample."""
        image = read_bytes(self.image, 'unreadable image') if self.image else None
        if self.json is None:
            return AnnotatedImage(image, upright_size(image), [])
        try:
            content = json.loads(read_bytes(self.json, 'invalid JSON'))
        except (ValueError, RecursionError) as error:
            raise InvalidExample('invalid JSON', one_line(error)) from error
        if not isinstance(content, Mapping) or not isinstance(content.get('shapes'), list):
            raise InvalidExample('missing key', 'the JSON has no list of shapes')
        if image is None:
            image = _embedded_image(content)
        size = coco_json.image_size({'height': content.get('imageHeight'), 'width': content.get('imageWidth')})
        size = size or upright_size(image)
        masks, skipped = _masks(content['shapes'], *size)
        return AnnotatedImage(image, size, masks, skipped)


def _item(folder: Path, file: str | None, image: str | None) -> LabelmeImage:
    location = os.path.relpath(file or image, folder)
    return LabelmeImage(os.path.splitext(location)[0], location, file, image)


def _with_unique_names(items: list[LabelmeImage]) -> Iterator[Item]:
    taken = set()
    for item in items:
        if item.name in taken:
            detail = 'another file has the same name without its suffix'
            yield InvalidItem(f'{item.name} ({item.location})', item.location, 'duplicate name', detail)
        else:
            taken.add(item.name)
            yield item


def _is_labelme(file: str) -> bool:
    return labelme_content(whole_file(file)) is not None


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


# ---- the image -------------------------------------------------------------------------------------


def _image_file(content: Mapping, file: str) -> str | None:
    """Where `imagePath` leads from the JSON `file`, or a file of this name beside it; None if there is neither."""
    image_path = content.get('imagePath')
    if not isinstance(image_path, str) or '\0' in image_path:
        return None
    image_path = image_path.replace('\\', '/')  # Windows wrote it
    folder = os.path.dirname(file)
    candidates = [os.path.join(folder, image_path), os.path.join(folder, PurePosixPath(image_path).name)]
    return next((os.path.normpath(candidate) for candidate in candidates if os.path.isfile(candidate)), None)


def _embedded_image(content: Mapping) -> bytes:
    data = content.get('imageData')
    if not isinstance(data, str) or not data:
        image_path = content.get('imagePath')
        detail = f'imagePath is {str(image_path)[:100]!r}, which is not there, and the JSON holds no imageData'
        raise InvalidExample('no image', detail)
    return _from_base64(data, 'unreadable image', 'imageData')


def _from_base64(text: str, cause: str, key: str) -> bytes:
    try:
        return base64.b64decode(text.split(',', 1)[-1] if text.startswith('data:') else text, validate=True)
    except ValueError as error:
        raise InvalidExample(cause, f'{key} is no base64: {error}') from error


# ---- shapes ----------------------------------------------------------------------------------------


class _SkippedShape(Exception):
    """A shape that is no mask: `cause` is counted."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


def _masks(shapes: list, height: int, width: int) -> tuple[list[dict], Causes]:
    """RLE of each object, and the shapes that are left out."""
    objects: dict[object, list[dict]] = {}
    skipped = Causes()
    for number, shape in enumerate(shapes):
        try:
            mask = _mask(shape, height, width)
        except _SkippedShape as error:
            skipped.add(error.cause, f'shape {number}')
            continue
        group = shape.get('group_id')
        key = number if group is None else (str(shape.get('label')), str(group))
        objects.setdefault(key, []).append(mask)
    return [parts[0] if len(parts) == 1 else coco.merge(parts) for parts in objects.values()], skipped


def _mask(shape, height: int, width: int) -> dict:
    """RLE of a shape.  Raises _SkippedShape."""
    if not isinstance(shape, Mapping):
        raise _SkippedShape('invalid shape')
    kind = shape.get('shape_type') or 'polygon'  # of labelme before 3.0, which had no other
    if shape.get('label') in IGNORED_LABELS:
        raise _SkippedShape('label that is ignored')
    if kind in WITHOUT_AREA:
        raise _SkippedShape('point or line, which has no area')
    points_N2 = _points(shape.get('points'))
    if kind == 'mask':
        mask = _pixels(shape.get('mask'), points_N2, height, width)
    else:
        mask = coco_json.polygons_to_rle([_polygon(kind, points_N2, height, width)], height, width)
    if not coco.area(mask):
        raise _SkippedShape('no pixels')
    return mask


def _points(points) -> np.ndarray:
    """float64 (N, 2): x, y in px."""
    try:
        points_N2 = np.array(points, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise _SkippedShape('invalid points') from None
    if points_N2.ndim != 2 or points_N2.shape[1] != 2 or not np.isfinite(points_N2).all():
        raise _SkippedShape('invalid points')
    return points_N2


def _polygon(kind: str, points_N2: np.ndarray, height: int, width: int) -> np.ndarray:
    """x, y, x, y, .. in px."""
    if kind == 'circle' and len(points_N2) == 2:  # the centre, and a point of the circle
        angles_N = np.arange(CIRCLE_CORNERS) * (2 * math.pi / CIRCLE_CORNERS)
        radius = math.dist(*points_N2)
        points_N2 = points_N2[0] + radius * np.stack([np.cos(angles_N), np.sin(angles_N)], -1)
    elif kind == 'rectangle' and len(points_N2) == 2:  # opposite corners
        (x0, y0), (x1, y1) = points_N2
        points_N2 = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind not in ('polygon', 'rectangle', 'rotation', 'oriented_rectangle'):
        raise _SkippedShape(f'shape_type {printable(str(kind)[:30])}, which is not known')
    try:
        return coco_json.polygon(points_N2.ravel().tolist(), height, width)[0]
    except ValueError:
        raise _SkippedShape('invalid polygon') from None


def _pixels(text, points_N2: np.ndarray, height: int, width: int) -> dict:
    """RLE of a small mask picture and the first and last pixel of its bounding box."""
    if not isinstance(text, str) or len(points_N2) != 2:
        raise _SkippedShape('no mask')
    try:
        with open_file(io.BytesIO(_from_base64(text, 'no mask', 'mask')), ('PNG',)) as image:
            pixels_hw = np.asarray(image.convert('L') if image.mode != '1' else image) > 0
    except Exception:  # pillow raises nearly anything on damaged files
        raise _SkippedShape('unreadable mask') from None
    left, top = (int(low) for low in np.clip(points_N2.min(0), -(2**31), 2**31))
    inside_hw = pixels_hw[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    top, left = max(top, 0), max(left, 0)
    mask_HW = np.zeros((height, width), bool)
    mask_HW[top : top + inside_hw.shape[0], left : left + inside_hw.shape[1]] = inside_hw
    return rle.encode(mask_HW)
