"""Average precision and recall of masks by the rules of COCO and LVIS, through pycocotools."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import math
import numbers
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval

from samjax.errors import SamjaxError
from samjax.masks import rle

SIZES = ('all', 'small', 'medium', 'large')  # COCO's: limits are 32^2 and 96^2 px of the `area` of annotations
FREQUENCIES = {'frequent': 'f', 'common': 'c', 'rare': 'r'}  # LVIS: how many training images show a category
PROPOSALS = 1000  # per image
COCO_MOST = 100  # detections per image and category
LVIS_MOST = 300  # detections per image
EDGE = 0.1  # px, by which boxes go over the edge of their image because a detector rounds them

TRUTH = 'give the annotations of COCO or LVIS, such as instances_val2017.json or lvis_v1_val.json'
BOXES = "give a detector's results in COCO's form, a list of {image_id, category_id, bbox, score}"
SAME_IMAGES = 'take truth and predictions of the same set'
SAME_SIZE = 'give masks at the height and width of the image in the annotations'
SAME_CATEGORIES = 'take the ids of the categories in the annotations, which do not count from 0 without gaps'


@dataclasses.dataclass(frozen=True)
class Truth:
    """What people marked in the images of a set."""

    path: Path
    is_lvis: bool  # else COCO
    images: dict[int, Mapping]  # entries of the JSON by their id
    categories: dict[int, Mapping]
    objects: list[Mapping]  # image_id, category_id, area in px, iscrowd, ignore, segmentation as compressed RLE

    def only(self, image_ids: Collection[int]) -> Truth:
        """The truth about some of the images."""
        images = {key: image for key, image in self.images.items() if key in image_ids}
        objects = [one for one in self.objects if one['image_id'] in images]
        return dataclasses.replace(self, images=images, objects=objects)


class Boxes(NamedTuple):
    """A detector's boxes in one image, in the order of its file."""

    boxes_N4: np.ndarray  # float32 x0, y0, x1, y1 in px, within the image and not empty
    score_N: np.ndarray  # float64
    category_N: np.ndarray  # int64, ids of the truth


class BoxFile(NamedTuple):
    """A detector's boxes in all images."""

    images: dict[int, Boxes]  # every image of the truth
    clipped: int  # boxes that went over the edge of their image
    dropped: int  # boxes without area in their image


def read_truth(path: str | os.PathLike) -> Truth:
    """Annotations of COCO or LVIS, the latter told by `neg_category_ids` of images or `frequency` of categories.

    Raises SamjaxError if the file cannot be read, is no such JSON, or names images or categories that it lacks.
    """
    path = Path(path)
    content = _read_json(path, TRUTH)
    lists = ('images', 'annotations', 'categories')
    if lacking := [key for key in lists if not isinstance(content, Mapping) or not isinstance(content.get(key), list)]:
        raise SamjaxError(f'{path} has no list of {" and ".join(lacking)}: {TRUTH}')
    is_lvis = _is_lvis(content['images'], content['categories'])
    images = _images(path, content['images'], is_lvis)
    categories = _categories(path, content['categories'], is_lvis)
    return Truth(path, is_lvis, images, categories, _objects(path, content['annotations'], images, categories, is_lvis))


def average_recall(truth: Truth, detections: Sequence[Mapping], most: int = PROPOSALS) -> dict[str, float]:
    """Mask AR: the share of objects found at IoU .50, .55 .. .95, on average, whatever their category.

    detections: of each `image_id`, `score` and `segmentation` as compressed RLE; the best `most` of an image count.
    Returns AR by size, and by frequency of the category for LVIS, as if nothing else were marked in the images.
    NaN where there are no objects.  Crowds are as in COCOeval.
    Raises SamjaxError for detections that do not fit the truth.
    Source: arXiv 2304.02643, section 7.3 and appendix D.3.
    """
    _check(truth, detections)
    found = _by(detections, 'image_id')

    def recall_A(objects):
        matched = _match(_by(objects, 'image_id'), found, most, recall_only=True)
        return [_mean(recall_T) for recall_T in matched.recall_TA.T]

    scores = dict(zip(SIZES, recall_A(truth.objects), strict=True))
    for name, frequency in FREQUENCIES.items() if truth.is_lvis else ():
        categories = _of_frequency(truth, frequency)
        scores[name] = recall_A([one for one in truth.objects if one['category_id'] in categories])[0]
    return scores


def average_precision(truth: Truth, detections: Sequence[Mapping]) -> dict[str, float]:
    """Mask AP on average over the categories that have objects, by the rules of COCO or LVIS, as the truth is.

    COCO: the best 100 detections of a category in an image count.  LVIS: the best 300 of an image; those are left out
    whose category was neither found in the image nor said to be absent, and unmatched ones of categories that were
    not marked throughout the image are ignored.

    detections: of each `image_id`, `category_id`, `score` and `segmentation` as compressed RLE.
    Returns AP (over IoU .50, .55 .. .95), AP50, AP75, small, medium, large, and for LVIS APr, APc, APf; NaN where
    there are no objects.
    Raises SamjaxError for detections that do not fit the truth.
    Sources: pycocotools.cocoeval, lvis.eval.
    """
    _check(truth, detections, with_category=True)
    precision_TRA = _precision(truth, detections)

    def mean(threshold=slice(None), size=0, categories=truth.categories):
        chosen = [precision_TRA[key][threshold, :, size] for key in categories if key in precision_TRA]
        return _mean(np.array(chosen))

    scores = {'AP': mean(), 'AP50': mean(_threshold(0.5)), 'AP75': mean(_threshold(0.75))}
    scores |= {name: mean(size=SIZES.index(name)) for name in SIZES[1:]}
    if truth.is_lvis:
        scores |= {f'AP{frequency}': mean(categories=_of_frequency(truth, frequency)) for frequency in 'rcf'}
    return scores


def read_boxes(path: str | os.PathLike, truth: Truth) -> BoxFile:
    """A detector's boxes: a JSON list of `image_id`, `category_id`, `bbox` (x, y, width, height in px) and `score`.

    truth: of the whole set.  Boxes are clipped to their image and dropped if nothing is left.
    Raises SamjaxError if the file cannot be read, is no such JSON, or does not fit the truth.
    """
    path = Path(path)
    entries = _read_json(path, BOXES)
    if not isinstance(entries, list):
        raise SamjaxError(f'{path} is not a list: {BOXES}')
    _check_boxes(path, entries, truth)
    by_image, clipped, dropped = _by(entries, 'image_id'), 0, 0
    images = {}
    for key, image in truth.images.items():
        some = by_image.get(key, [])
        box_N4 = np.array([one['bbox'] for one in some], np.float64).reshape(-1, 4)
        box_N4[:, 2:] = box_N4[:, :2] + np.maximum(box_N4[:, 2:], 0)
        inside_N4 = np.clip(box_N4, 0, np.tile([image['width'], image['height']], 2)).astype(np.float32)
        kept_N = (inside_N4[:, 2:] > inside_N4[:, :2]).all(1)
        dropped += np.count_nonzero(~kept_N)
        clipped += np.count_nonzero(kept_N & (np.abs(inside_N4 - box_N4) > EDGE).any(1))
        score_N = np.array([one['score'] for one in some], np.float64)
        category_N = np.array([one['category_id'] for one in some], np.int64)
        images[key] = Boxes(inside_N4[kept_N], score_N[kept_N], category_N[kept_N])
    return BoxFile(images, clipped, dropped)


# ---- matching --------------------------------------------------------------------------------------

# The package `lvis` would not do: its latest version, 0.5.3, needs np.float, which numpy 2 lacks, and OpenCV, and
# without categories it looks at no object at all (lvis-api PR #36).


class _Matched(NamedTuple):
    """Of one category, -1 where there are no objects; R recall 0, .01 .. 1, T IoU .5, .55 .. .95, A sizes."""

    precision_TRA: np.ndarray
    recall_TA: np.ndarray


class _Matcher(COCOeval):
    """COCOeval of one category with objects and detections by image instead of `COCO`, which would change them."""

    CATEGORY = 1  # a name for the only one

    def __init__(self, objects: Mapping, found: Mapping, most: int, unsure: Collection[int], recall_only: bool):
        super().__init__(iouType='segm')
        self.params.imgIds = sorted(objects.keys() | found.keys())
        self.params.catIds = [self.CATEGORY]
        self.params.maxDets = [most]
        self._found, self._unsure, self._recall_only = found, unsure, recall_only
        for image, some in objects.items():
            # COCOeval takes the id 0 for unmatched, hence ids of our own.
            self._gts[image, self.CATEGORY] = [{**one, 'id': number} for number, one in enumerate(some, 1)]

    def _prepare(self):
        """COCOeval would fill in what is there."""

    def computeIoU(self, imgId, catId):
        """IoU of the best detections and the objects; only now are detections made, for there may be millions."""
        chosen = sorted(self._found.get(imgId, ()), key=lambda one: -one['score'])[: self.params.maxDets[-1]]
        self._dts[imgId, catId] = chosen
        ious_DG = super().computeIoU(imgId, catId)
        if self._recall_only:
            # Whatever reaches no object at the lowest threshold changes no recall, and that is nearly everything.
            kept = np.flatnonzero(np.max(ious_DG, 1) >= self.params.iouThrs[0]) if len(ious_DG) else []
            chosen, ious_DG = [chosen[k] for k in kept], ious_DG[kept] if len(kept) else []
        areas = coco.area([one['segmentation'] for one in chosen])
        self._dts[imgId, catId] = [
            {'id': number, 'score': one['score'], 'area': area}
            for number, (one, area) in enumerate(zip(chosen, areas, strict=True), 1)
        ]
        return ious_DG

    def evaluateImg(self, imgId, catId, aRng, maxDet):
        """COCOeval's, which LVIS adds to: what is unmatched is ignored where it may be an object that nobody marked."""
        matches = super().evaluateImg(imgId, catId, aRng, maxDet)
        if matches is not None and imgId in self._unsure:
            matches['dtIgnore'] |= matches['dtMatches'] == 0
        return matches


def _match(
    objects: Mapping[int, list],
    found: Mapping[int, list],
    most: int,
    unsure: Collection[int] = (),
    recall_only: bool = False,
) -> _Matched:
    """Objects and detections by image; unsure: images where unmatched detections are ignored."""
    matcher = _Matcher(objects, found, most, unsure, recall_only)
    with contextlib.redirect_stdout(io.StringIO()):
        matcher.evaluate()
        matcher.accumulate()
    return _Matched(matcher.eval['precision'][:, :, 0, :, 0], matcher.eval['recall'][:, 0, :, 0])


def _precision(truth: Truth, detections: Sequence[Mapping]) -> dict[int, np.ndarray]:
    """[T, R, A] of each category that has objects."""
    unsure = collections.defaultdict(set)
    if truth.is_lvis:
        detections = _federated(truth, detections)
        for key, image in truth.images.items():
            for category in image['not_exhaustive_category_ids']:
                unsure[category].add(key)
    found = _by(detections, 'category_id')
    most = LVIS_MOST if truth.is_lvis else COCO_MOST
    return {
        category: _match(
            _by(objects, 'image_id'), _by(found.get(category, ()), 'image_id'), most, unsure[category]
        ).precision_TRA
        for category, objects in _by(truth.objects, 'category_id').items()
    }


def _federated(truth: Truth, detections: Sequence[Mapping]) -> list[Mapping]:
    """The best of each image, but those of categories of which nothing is known in it."""
    known = {key: set(image['neg_category_ids']) for key, image in truth.images.items()}
    for one in truth.objects:
        known[one['image_id']].add(one['category_id'])
    chosen = []
    for key, some in _by(detections, 'image_id').items():
        best = sorted(some, key=lambda one: -one['score'])[:LVIS_MOST]
        chosen += [one for one in best if one['category_id'] in known[key]]
    return chosen


def _by(items: Iterable[Mapping], key: str) -> dict[int, list]:
    groups = collections.defaultdict(list)
    for one in items:
        groups[one[key]].append(one)
    return dict(groups)


def _of_frequency(truth: Truth, frequency: str) -> set[int]:
    return {key for key, category in truth.categories.items() if category['frequency'] == frequency}


def _threshold(iou: float) -> int:
    """Index T."""
    return round((iou - 0.5) / 0.05)


def _mean(values: np.ndarray) -> float:
    """Of all that are not -1, or NaN."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


# ---- checks of detections --------------------------------------------------------------------------


def _check(truth: Truth, detections: Sequence[Mapping], with_category: bool = False) -> None:
    def refuse(bad, what, key, mend):
        _refuse('detections', detections, bad, what, key, mend)

    def no_rle(one):
        return not _is_compressed(one['segmentation'])

    def other_size(one):
        return tuple(one['segmentation']['size']) != _size(truth.images[one['image_id']])

    needed = ['image_id', 'score', 'segmentation', *(['category_id'] if with_category else [])]
    refuse(_lacks(needed), f'lack one of {", ".join(needed)}', '', "give results in COCO's form")
    refuse(*_unknown_images(truth))
    refuse(_not_finite('score'), 'have no finite score', 'score', 'look for NaN in the model')
    refuse(no_rle, 'have no compressed RLE', 'segmentation', 'encode masks by pycocotools.mask.encode')
    refuse(other_size, 'have an RLE of another size than their image', 'image_id', SAME_SIZE)
    if with_category:
        refuse(*_unknown_categories(truth))


def _check_boxes(path: Path, entries: list, truth: Truth) -> None:
    def refuse(bad, what, key, mend):
        _refuse(f'boxes of {path}', entries, bad, what, key, mend)

    def no_box(one):
        return not _is_box(one['bbox'])

    needed = ['image_id', 'category_id', 'bbox', 'score']
    refuse(_lacks(needed), f'lack one of {", ".join(needed)}', '', BOXES)
    refuse(*_unknown_images(truth))
    refuse(*_unknown_categories(truth))
    refuse(_not_finite('score'), 'have no finite score', 'score', BOXES)
    refuse(no_box, 'are not four finite numbers', 'bbox', BOXES)


def _unknown_images(truth: Truth) -> tuple[Callable, str, str, str]:
    return _not_in(truth.images, 'image_id'), f'are of images that {truth.path} lacks', 'image_id', SAME_IMAGES


def _unknown_categories(truth: Truth) -> tuple[Callable, str, str, str]:
    what = f'are of categories that {truth.path} lacks'
    return _not_in(truth.categories, 'category_id'), what, 'category_id', SAME_CATEGORIES


def _refuse(items_name: str, items: Sequence, bad: Callable, what: str, key: str, mend: str) -> None:
    """Raises SamjaxError if any is bad; key: what to show of the first, empty for all of it."""
    wrong = [number for number, one in enumerate(items) if bad(one)]
    if wrong:
        first = items[wrong[0]]
        shown = f'{key} {reprlib.repr(first[key])}' if key else reprlib.repr(first)
        raise SamjaxError(f'{len(wrong)} of {len(items)} {items_name} {what}, first [{wrong[0]}] with {shown}: {mend}')


def _lacks(needed: Iterable[str]) -> Callable:
    needed = set(needed)
    return lambda one: not isinstance(one, Mapping) or not needed <= one.keys()


def _not_in(known: Mapping[int, Mapping], key: str) -> Callable:
    return lambda one: not isinstance(one[key], (int, np.integer)) or one[key] not in known


def _not_finite(key: str) -> Callable:
    return lambda one: not _is_finite(one[key])


def _is_finite(number) -> bool:
    return isinstance(number, numbers.Real) and abs(number) < 1e30  # of JSON's integers of any length none goes on


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))


def _is_compressed(segmentation) -> bool:
    if not isinstance(segmentation, Mapping) or not isinstance(segmentation.get('counts'), (str, bytes)):
        return False
    return isinstance(segmentation.get('size'), Sequence)


def _size(image: Mapping) -> tuple[int, int]:
    return image['height'], image['width']


# ---- JSON ------------------------------------------------------------------------------------------


def _read_json(path: Path, mend: str):
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SamjaxError(f'{path} cannot be read ({error.strerror}): {mend}') from error
    except (ValueError, RecursionError) as error:
        raise SamjaxError(f'{path} is not valid JSON ({error}): {mend}') from error


def _is_lvis(images: list, categories: list) -> bool:
    marks = {'neg_category_ids', 'not_exhaustive_category_ids', 'frequency'}
    return any(isinstance(one, Mapping) and marks & one.keys() for one in [*images, *categories])


def _images(path: Path, entries: list, is_lvis: bool) -> dict[int, Mapping]:
    lists = ['neg_category_ids', 'not_exhaustive_category_ids'] if is_lvis else []

    def wrong(image):
        sized = all(type(image[key]) is int and image[key] > 0 for key in ('height', 'width'))
        return not sized or not all(_are_integers(image[key]) for key in lists)

    return _by_id(path, 'images', entries, ['height', 'width', *lists], wrong)


def _categories(path: Path, entries: list, is_lvis: bool) -> dict[int, Mapping]:
    def wrong(category):
        return is_lvis and category['frequency'] not in FREQUENCIES.values()

    return _by_id(path, 'categories', entries, ['frequency'] if is_lvis else [], wrong)


def _by_id(path: Path, what: str, entries: list, needed: list[str], wrong: Callable) -> dict[int, Mapping]:
    """Entries that have an id of their own and all that is needed of them."""
    lacks, needed = _lacks(['id', *needed]), ', '.join(['id', *needed])

    def bad(one):
        return lacks(one) or type(one['id']) is not int or wrong(one)

    _refuse(f'{what} of {path}', entries, bad, f'lack a sound {needed}', '', TRUTH)
    found = {one['id']: one for one in entries}
    if len(found) < len(entries):
        (first, _), *_ = collections.Counter(one['id'] for one in entries).most_common(1)
        raise SamjaxError(f'{path} has several {what} with the id {first}: {TRUTH}')
    return found


def _are_integers(values) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _objects(path: Path, annotations: list, images: Mapping, categories: Mapping, is_lvis: bool) -> list[Mapping]:
    def refuse(bad, what, key=''):
        _refuse(f'annotations of {path}', annotations, bad, what, key, TRUTH)

    needed = ['image_id', 'category_id', 'area', 'segmentation']
    refuse(_lacks(needed), f'lack one of {", ".join(needed)}')
    refuse(_not_in(images, 'image_id'), 'are of images that it lacks', 'image_id')
    refuse(_not_in(categories, 'category_id'), 'are of categories that it lacks', 'category_id')
    refuse(_not_finite('area'), 'have no finite area', 'area')
    objects = []
    for number, one in enumerate(annotations):
        try:
            segmentation = _rle(one['segmentation'], *_size(images[one['image_id']]))
        except Exception as error:  # pycocotools raises nearly anything
            where = f'annotations[{number}] of {path}'
            raise SamjaxError(f'{where} has a segmentation that cannot be read ({error}): {TRUTH}') from error
        # LVIS has no crowds; its own code looks at `ignore`, which COCOeval replaces by that of crowds.
        crowd = bool(one.get('iscrowd')) and not is_lvis
        ignore = bool(one.get('ignore')) if is_lvis else crowd
        kept = {key: one[key] for key in needed[:3]}
        objects.append({**kept, 'iscrowd': crowd, 'ignore': ignore, 'segmentation': segmentation})
    return objects


def _rle(segmentation, height: int, width: int) -> dict:
    """Compressed RLE of polygons, or of an RLE, which is checked."""
    if isinstance(segmentation, list):
        return coco.merge(coco.frPyObjects(segmentation, height, width))
    size, counts = list(segmentation['size']), segmentation['counts']
    if size != [height, width]:
        raise ValueError(f'of size {size} in an image of {height} x {width} px')
    if isinstance(counts, list):
        counts = coco.frPyObjects(segmentation, height, width)['counts']
    counts = counts.encode() if isinstance(counts, str) else counts
    runs = rle.run_lengths(counts)
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError('its runs do not add up to the image')
    return {'size': size, 'counts': counts}
