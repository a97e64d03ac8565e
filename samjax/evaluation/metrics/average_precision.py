"""Average precision and recall of masks by the rules of COCO and LVIS, through pycocotools."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
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

from samjax.data.formats import coco as coco_format
from samjax.data.formats import coco_json
from samjax.data.formats.causes import Causes
from samjax.data.formats.coco_json import flag, identifier
from samjax.errors import InvalidExample, SamjaxError

SIZES = ('all', 'small', 'medium', 'large')  # COCO's: limits are 32^2 and 96^2 px of the `area` of annotations
FREQUENCIES = {'frequent': 'f', 'common': 'c', 'rare': 'r'}  # LVIS: how many training images show a category
MAX_PROPOSALS = 1000  # per image
MAX_DETECTIONS_COCO = 100  # detections per image and category
MAX_DETECTIONS_LVIS = 300  # detections per image
ROUNDING = 0.1  # px, by which boxes may exceed their image because a detector rounds them

GIVE_ANNOTATIONS = 'give the annotations of COCO or LVIS, such as instances_val2017.json or lvis_v1_val.json'
GIVE_BOXES = "give a detector's results in COCO's form, a list of {image_id, category_id, bbox, score}"
SAME_IMAGES = 'take ground truth and predictions of the same data set'
SAME_SIZE = 'give masks at the height and width of the image in the annotations'
SAME_CATEGORIES = 'take the ids of the categories in the annotations, which do not count from 0 without gaps'


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of a data set.  Ids are as `coco_json.identifier` reads them."""

    path: Path
    is_lvis: bool  # else COCO
    images: dict[int | str, Mapping]  # entries of the JSON by their id
    categories: dict[int | str, Mapping]
    objects: list[Mapping]  # image_id, category_id (None: unknown), area in px, iscrowd, ignore, segmentation as
    # compressed RLE
    skipped: Causes = dataclasses.field(default_factory=Causes)  # annotations of the file that are no objects
    warnings: Causes = dataclasses.field(default_factory=Causes)  # what is read, and may not be what was meant

    def only(self, image_ids: Collection[int | str]) -> GroundTruth:
        """The ground truth of a subset of the images."""
        images = {key: image for key, image in self.images.items() if key in image_ids}
        objects = [annotation for annotation in self.objects if annotation['image_id'] in images]
        return dataclasses.replace(self, images=images, objects=objects)

    def remarks(self) -> str:
        """What a report must say about the annotations of the whole file; empty if all are as they should be."""
        left_out = 'Annotations left out: ' + '; '.join(self.skipped.lines()) + '.' if self.skipped else ''
        unusual = 'In the annotations: ' + '; '.join(self.warnings.lines()) + '.' if self.warnings else ''
        return ' '.join(filter(None, (left_out, unusual)))


class Boxes(NamedTuple):
    """A detector's boxes in one image, in the order of its file."""

    boxes_N4: np.ndarray  # float32 x0, y0, x1, y1 in px, inside the image and not empty
    score_N: np.ndarray  # float64
    category_N: np.ndarray  # object, ids of the ground truth: int or str


class BoxFile(NamedTuple):
    """A detector's boxes in all images."""

    images: dict[int | str, Boxes]  # every image of the ground truth
    clipped: int  # boxes that exceeded their image
    dropped: int  # boxes without area in their image


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Annotations of COCO, or of LVIS if images have `neg_category_ids` or categories `frequency`.

    The masks are those that training reads, with crowds, and with masks that cover no pixel, which count as objects
    that are never found, as in pycocotools.  Sizes of images that the JSON lacks are read from their files.  What is
    left out or replaced is counted in `skipped` and `warnings`.

    Raises SamjaxError if the file cannot be read, is no such JSON, has an image or category that cannot be used, or
    has annotations of which none can be used.
    """
    path = Path(path)
    content = coco_json.read(path, GIVE_ANNOTATIONS)
    if wrong := coco_json.wrong_form(content, ('images', 'annotations')):
        raise SamjaxError(f'{path} {wrong}: {GIVE_ANNOTATIONS}')
    annotations = content['annotations']
    if coco_json.is_panoptic(annotations):
        raise SamjaxError(f'{path} is panoptic, without a segmentation for each object: {GIVE_ANNOTATIONS}')
    skipped, warnings = Causes(), Causes()
    categories = content.get('categories')
    if not isinstance(categories, list):
        ids = dict.fromkeys(entry.get('category_id') for entry in annotations if isinstance(entry, Mapping))
        categories = [{'id': key} for key in ids if identifier(key) is not None]
        warnings.add('file without a list of categories, those of its annotations are taken', '')
    is_lvis = _is_lvis(content['images'], categories)
    images = _images(path, content['images'], is_lvis, warnings)
    categories = _categories(path, categories, is_lvis, warnings)
    objects = _objects(annotations, images, categories, is_lvis, skipped, warnings)
    if annotations and not objects:
        reasons = '; '.join(skipped.lines())
        raise SamjaxError(
            f'{path}: none of its {len(annotations)} annotations can be used ({reasons}): {GIVE_ANNOTATIONS}'
        )
    return GroundTruth(path, is_lvis, images, categories, objects, skipped, warnings)


def average_recall(
    truth: GroundTruth, detections: Sequence[Mapping], max_detections: int = MAX_PROPOSALS
) -> dict[str, float]:
    """Mask AR: the recall of objects at IoU .50, .55 .. .95, on average, whatever their category.

    detections: of each `image_id`, `score` and `segmentation` as compressed RLE; the best `max_detections` of an image
    count.
    Returns AR by size, and by frequency of the category for LVIS, as if nothing else were annotated in the images.
    NaN where there are no objects.  Crowds are as in COCOeval.
    Raises SamjaxError for detections that do not fit the ground truth.
    Source: arXiv 2304.02643, section 7.3 and appendix D.3.
    """
    detections = _checked(truth, detections)
    detections_by_image = _by(detections, 'image_id')

    def recall_A(objects):
        matched = _match(_by(objects, 'image_id'), detections_by_image, max_detections, recall_only=True)
        return [_mean(recall_T) for recall_T in matched.recall_TA.T]

    scores = dict(zip(SIZES, recall_A(truth.objects), strict=True))
    for name, frequency in FREQUENCIES.items() if truth.is_lvis else ():
        categories = _of_frequency(truth, frequency)
        scores[name] = recall_A(
            [annotation for annotation in truth.objects if annotation['category_id'] in categories]
        )[0]
    return scores


def average_precision(truth: GroundTruth, detections: Sequence[Mapping]) -> dict[str, float]:
    """Mask AP on average over the categories that have objects, by the rules of COCO or LVIS (`is_lvis`).

    Objects of unknown categories do not count.

    COCO: the best 100 detections of a category in an image count.  LVIS: the best 300 of an image; detections of
    categories that are neither annotated in the image nor listed as absent (`neg_category_ids`) are left out, and
    unmatched ones of categories in `not_exhaustive_category_ids` are ignored.

    detections: of each `image_id`, `category_id`, `score` and `segmentation` as compressed RLE.
    Returns AP (over IoU .50, .55 .. .95), AP50, AP75, small, medium, large, and for LVIS APr, APc, APf; NaN where
    there are no objects.
    Raises SamjaxError for detections that do not fit the ground truth.
    Sources: pycocotools.cocoeval, lvis.eval.
    """
    detections = _checked(truth, detections, with_category=True)
    precision_TRA = _precision(truth, detections)

    def mean(threshold=slice(None), size=0, categories=truth.categories):
        precision = [precision_TRA[key][threshold, :, size] for key in categories if key in precision_TRA]
        return _mean(np.array(precision))

    scores = {'AP': mean(), 'AP50': mean(_threshold(0.5)), 'AP75': mean(_threshold(0.75))}
    scores |= {name: mean(size=SIZES.index(name)) for name in SIZES[1:]}
    if truth.is_lvis:
        scores |= {f'AP{frequency}': mean(categories=_of_frequency(truth, frequency)) for frequency in 'rcf'}
    return scores


def read_boxes(path: str | os.PathLike, truth: GroundTruth) -> BoxFile:
    """A detector's boxes: a JSON list of `image_id`, `category_id`, `bbox` (x, y, width, height in px) and `score`.

    truth: of the whole data set.  Boxes are clipped to their image and dropped if nothing is left.
    Raises SamjaxError if the file cannot be read, is no such JSON, or does not fit the ground truth.
    """
    path = Path(path)
    entries = coco_json.read(path, GIVE_BOXES)
    if not isinstance(entries, list):
        raise SamjaxError(f'{path} is not a list: {GIVE_BOXES}')
    entries = _checked_boxes(path, entries, truth)
    by_image, clipped, dropped = _by(entries, 'image_id'), 0, 0
    images = {}
    for key, image in truth.images.items():
        detections = by_image.get(key, [])
        box_N4 = np.array([detection['bbox'] for detection in detections], np.float64).reshape(-1, 4)
        box_N4[:, 2:] = box_N4[:, :2] + np.maximum(box_N4[:, 2:], 0)
        clipped_N4 = np.clip(box_N4, 0, np.tile([image['width'], image['height']], 2)).astype(np.float32)
        kept_N = (clipped_N4[:, 2:] > clipped_N4[:, :2]).all(1)
        dropped += np.count_nonzero(~kept_N)
        clipped += np.count_nonzero(kept_N & (np.abs(clipped_N4 - box_N4) > ROUNDING).any(1))
        score_N = np.array([detection['score'] for detection in detections], np.float64)
        category_N = np.array([detection['category_id'] for detection in detections], object)
        images[key] = Boxes(clipped_N4[kept_N], score_N[kept_N], category_N[kept_N])
    return BoxFile(images, clipped, dropped)


# ---- matching --------------------------------------------------------------------------------------

# The package `lvis` would not do: its latest version, 0.5.3, needs np.float, which numpy 2 lacks, and OpenCV, and
# without categories it evaluates no object at all (lvis-api PR #36).


class _Matched(NamedTuple):
    """Of one category, -1 where there are no objects; R recall 0, .01 .. 1, T IoU .5, .55 .. .95, A sizes."""

    precision_TRA: np.ndarray
    recall_TA: np.ndarray


class _Matcher(COCOeval):
    """COCOeval of one category with objects and detections by image instead of `COCO`, which would change them."""

    CATEGORY = 1  # id of the only category

    def __init__(
        self, objects: Mapping, detections: Mapping, max_detections: int, not_exhaustive: Collection[int], recall_only
    ):
        super().__init__(iouType='segm')
        self.params.imgIds = sorted(objects.keys() | detections.keys())
        self.params.catIds = [self.CATEGORY]
        self.params.maxDets = [max_detections]
        self._detections, self._not_exhaustive, self._recall_only = detections, not_exhaustive, recall_only
        for image, of_image in objects.items():
            # COCOeval takes the id 0 for unmatched, hence ids from 1 on.
            self._gts[image, self.CATEGORY] = [{**item, 'id': number} for number, item in enumerate(of_image, 1)]

    def _prepare(self):
        """Does nothing: COCOeval would read annotations from a `COCO`."""

    def computeIoU(self, imgId, catId):
        """IoU of the best detections and the objects; detections are only made here, for there may be millions."""
        detections = self._detections.get(imgId, ())
        best = sorted(detections, key=lambda detection: -detection['score'])[: self.params.maxDets[-1]]
        self._dts[imgId, catId] = best
        ious_DG = super().computeIoU(imgId, catId)
        if self._recall_only:
            # A detection below the lowest threshold with each object does not change recall: nearly all of them are.
            kept = np.flatnonzero(np.max(ious_DG, 1) >= self.params.iouThrs[0]) if len(ious_DG) else []
            best, ious_DG = [best[k] for k in kept], ious_DG[kept] if len(kept) else []
        areas = coco.area([detection['segmentation'] for detection in best])
        self._dts[imgId, catId] = [
            {'id': number, 'score': detection['score'], 'area': area}
            for number, (detection, area) in enumerate(zip(best, areas, strict=True), 1)
        ]
        return ious_DG

    def evaluateImg(self, imgId, catId, aRng, maxDet):
        """As COCOeval; for LVIS an unmatched detection is ignored where it may be an object without annotation."""
        matches = super().evaluateImg(imgId, catId, aRng, maxDet)
        if matches is not None and imgId in self._not_exhaustive:
            matches['dtIgnore'] |= matches['dtMatches'] == 0
        return matches


def _match(
    objects: Mapping[int | str, list],
    detections: Mapping[int | str, list],
    max_detections: int,
    not_exhaustive: Collection[int | str] = (),
    recall_only: bool = False,
) -> _Matched:
    """Objects and detections by image; not_exhaustive: images where unmatched detections are ignored."""
    ids = sorted(objects.keys() | detections.keys(), key=lambda key: (isinstance(key, str), key))
    index = {key: number for number, key in enumerate(ids)}  # COCOeval sorts them, so texts would not do
    objects = {index[key]: of_image for key, of_image in objects.items()}
    detections = {index[key]: of_image for key, of_image in detections.items()}
    not_exhaustive = {index[key] for key in not_exhaustive if key in index}
    matcher = _Matcher(objects, detections, max_detections, not_exhaustive, recall_only)
    with contextlib.redirect_stdout(io.StringIO()):
        matcher.evaluate()
        matcher.accumulate()
    return _Matched(matcher.eval['precision'][:, :, 0, :, 0], matcher.eval['recall'][:, 0, :, 0])


def _precision(truth: GroundTruth, detections: Sequence[Mapping]) -> dict[int | str, np.ndarray]:
    """[T, R, A] of each category that has objects."""
    not_exhaustive = collections.defaultdict(set)
    if truth.is_lvis:
        detections = _federated(truth, detections)
        for key, image in truth.images.items():
            for category in image['not_exhaustive_category_ids']:
                not_exhaustive[category].add(key)
    by_category = _by(detections, 'category_id')
    limit = MAX_DETECTIONS_LVIS if truth.is_lvis else MAX_DETECTIONS_COCO
    precision = {}
    for category, objects in _by(truth.objects, 'category_id').items():
        by_image = _by(by_category.get(category, ()), 'image_id')
        precision[category] = _match(_by(objects, 'image_id'), by_image, limit, not_exhaustive[category]).precision_TRA
    return precision


def _federated(truth: GroundTruth, detections: Sequence[Mapping]) -> list[Mapping]:
    """The best of each image, without those of categories that are neither annotated nor listed as absent in it."""
    known = {key: set(image['neg_category_ids']) for key, image in truth.images.items()}
    for annotation in truth.objects:
        known[annotation['image_id']].add(annotation['category_id'])
    kept = []
    for key, of_image in _by(detections, 'image_id').items():
        best = sorted(of_image, key=lambda detection: -detection['score'])[:MAX_DETECTIONS_LVIS]
        kept += [detection for detection in best if detection['category_id'] in known[key]]
    return kept


def _by(items: Iterable[Mapping], key: str) -> dict[int | str | None, list]:
    """Items grouped by their value of a key."""
    groups = collections.defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return dict(groups)


def _of_frequency(truth: GroundTruth, frequency: str) -> set[int | str]:
    return {key for key, category in truth.categories.items() if category['frequency'] == frequency}


def _threshold(iou: float) -> int:
    """Index of an IoU threshold on the axis T."""
    return round((iou - 0.5) / 0.05)


def _mean(values: np.ndarray) -> float:
    """The mean of all values that are not -1; NaN if there is none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


# ---- checks of detections --------------------------------------------------------------------------


def _checked(truth: GroundTruth, detections: Sequence[Mapping], with_category: bool = False) -> Sequence[Mapping]:
    """The detections, with ids as in the ground truth."""

    def refuse(bad, what, key, remedy):
        _refuse('detections', detections, bad, what, key, remedy)

    def no_rle(detection):
        return not _is_compressed(detection['segmentation'])

    def other_size(detection):
        return tuple(detection['segmentation']['size']) != _size(truth.images[detection['image_id']])

    needed = ['image_id', 'score', 'segmentation', *(['category_id'] if with_category else [])]
    refuse(_lacks(needed), f'lack one of {", ".join(needed)}', '', "give results in COCO's form")
    detections = _with_ids(detections)
    refuse(*_unknown_images(truth))
    refuse(_not_finite('score'), 'have no finite score', 'score', 'check the model for NaN')
    refuse(no_rle, 'have no compressed RLE', 'segmentation', 'encode masks by pycocotools.mask.encode')
    refuse(other_size, 'have an RLE of another size than their image', 'image_id', SAME_SIZE)
    if with_category:
        refuse(*_unknown_categories(truth))
    return detections


def _checked_boxes(path: Path, entries: list, truth: GroundTruth) -> Sequence[Mapping]:
    """The entries, with ids as in the ground truth."""

    def refuse(bad, what, key, remedy):
        _refuse(f'boxes of {path}', entries, bad, what, key, remedy)

    def no_box(detection):
        return not _is_box(detection['bbox'])

    needed = ['image_id', 'category_id', 'bbox', 'score']
    refuse(_lacks(needed), f'lack one of {", ".join(needed)}', '', GIVE_BOXES)
    entries = _with_ids(entries)
    refuse(*_unknown_images(truth))
    refuse(*_unknown_categories(truth))
    refuse(_not_finite('score'), 'have no finite score', 'score', GIVE_BOXES)
    refuse(no_box, 'are not four finite numbers', 'bbox', GIVE_BOXES)
    return entries


def _with_ids(detections: Sequence[Mapping]) -> Sequence[Mapping]:
    """Detections whose ids are as `identifier` reads them; what it does not read stays, to be refused."""

    def with_ids(detection):
        ids = {key: detection[key] for key in ('image_id', 'category_id') if key in detection}
        read = {key: identifier(value) for key, value in ids.items() if type(value) is not int}
        read = {key: value for key, value in read.items() if value is not None}
        return {**detection, **read} if read else detection

    return list(map(with_ids, detections))


def _unknown_images(truth: GroundTruth) -> tuple[Callable, str, str, str]:
    return _not_in(truth.images, 'image_id'), f'are of images that {truth.path} lacks', 'image_id', SAME_IMAGES


def _unknown_categories(truth: GroundTruth) -> tuple[Callable, str, str, str]:
    what = f'are of categories that {truth.path} lacks'
    return _not_in(truth.categories, 'category_id'), what, 'category_id', SAME_CATEGORIES


def _refuse(items_name: str, items: Sequence, bad: Callable, what: str, key: str, remedy: str) -> None:
    """Raises SamjaxError if any item is bad; key: what to show of the first, empty for all of it."""
    wrong = [number for number, item in enumerate(items) if bad(item)]
    if wrong:
        first = items[wrong[0]]
        shown = f'{key} {reprlib.repr(first[key])}' if key else reprlib.repr(first)
        raise SamjaxError(
            f'{len(wrong)} of {len(items)} {items_name} {what}, first [{wrong[0]}] with {shown}: {remedy}'
        )


def _lacks(needed: Iterable[str]) -> Callable:
    needed = set(needed)
    return lambda item: not isinstance(item, Mapping) or not needed <= item.keys()


def _not_in(known: Mapping[int | str, Mapping], key: str) -> Callable:
    return lambda item: identifier(item[key]) not in known


def _not_finite(key: str) -> Callable:
    return lambda item: not _is_finite(item[key])


def _is_finite(number) -> bool:
    return isinstance(number, numbers.Real) and abs(number) < 1e30  # JSON has integers of any length


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))


def _is_compressed(segmentation) -> bool:
    if not isinstance(segmentation, Mapping) or not isinstance(segmentation.get('counts'), (str, bytes)):
        return False
    return isinstance(segmentation.get('size'), Sequence)


def _size(image: Mapping) -> tuple[int, int]:
    return image['height'], image['width']


# ---- JSON ------------------------------------------------------------------------------------------


def _is_lvis(images: list, categories: list) -> bool:
    lvis_keys = {'neg_category_ids', 'not_exhaustive_category_ids', 'frequency'}
    return any(isinstance(entry, Mapping) and lvis_keys & entry.keys() for entry in [*images, *categories])


def _images(path: Path, entries: list, is_lvis: bool, warnings: Causes) -> dict[int | str, Mapping]:
    """Entries of `images` by id, with height and width in px as integers."""
    lists = ['neg_category_ids', 'not_exhaustive_category_ids'] if is_lvis else []
    by_id = _by_id(path, 'images', entries, lists, lambda image: not all(_are_ids(image[key]) for key in lists))
    if len(by_id) < len(entries):
        first = {}
        for entry in entries:
            if first.setdefault(identifier(entry['id']), entry) != entry:
                raise SamjaxError(
                    f'{path} has several images with the id {identifier(entry["id"])}: {GIVE_ANNOTATIONS}'
                )
        warnings.add('entry of images that is there several times', '', len(entries) - len(by_id))
    sizes = {key: coco_json.image_size(image) for key, image in by_id.items()}
    unstated = [key for key, size in sizes.items() if size is None]
    if unstated:
        sizes |= coco_format.sizes_from_files(path)
        warnings.add(
            'image without valid height and width, those of its file are taken', f'image {unstated[0]}', len(unstated)
        )
    missing = [key for key in unstated if sizes[key] is None]
    if missing:
        raise SamjaxError(
            f'{len(missing)} of {len(by_id)} images of {path} lack a valid height and width, and have no file to take '
            f'them from, first image {missing[0]}: {GIVE_ANNOTATIONS}'
        )
    images = {}
    for key, image in by_id.items():
        height, width = sizes[key]
        ids = {name: list(map(identifier, image[name])) for name in lists}
        images[key] = {**image, **ids, 'id': key, 'height': height, 'width': width}
    return images


def _categories(path: Path, entries: list, is_lvis: bool, warnings: Causes) -> dict[int | str, Mapping]:
    """Entries of `categories` by id."""

    def wrong(category):
        return is_lvis and category['frequency'] not in FREQUENCIES.values()

    by_id = _by_id(path, 'categories', entries, ['frequency'] if is_lvis else [], wrong)
    if len(by_id) < len(entries):
        counts = collections.Counter(identifier(entry['id']) for entry in entries)
        warnings.add(
            'category with the id of another', f'category {counts.most_common(1)[0][0]}', len(entries) - len(by_id)
        )
    return by_id


def _by_id(path: Path, what: str, entries: list, needed: list[str], wrong: Callable) -> dict[int | str, Mapping]:
    """Entries by their id, the first of each; each must have the needed keys."""
    lacks, needed = _lacks(['id', *needed]), ', '.join(['id', *needed])

    def bad(entry):
        return lacks(entry) or identifier(entry['id']) is None or wrong(entry)

    _refuse(f'{what} of {path}', entries, bad, f'lack a valid {needed}', '', GIVE_ANNOTATIONS)
    by_id = {}
    for entry in entries:
        by_id.setdefault(identifier(entry['id']), entry)
    return by_id


def _are_ids(values) -> bool:
    return isinstance(values, list) and all(identifier(value) is not None for value in values)


def _objects(
    annotations: list, images: Mapping, categories: Mapping, is_lvis: bool, skipped: Causes, warnings: Causes
) -> list[Mapping]:
    """Annotations that are objects; why others are none is added to `skipped`, what is unusual to `warnings`."""
    objects, seen = [], set()
    for position, annotation in enumerate(annotations):
        try:
            item, pixels, remarks = _object(annotation, images, categories, is_lvis)
            identity = (
                *map(item.get, ('image_id', 'category_id', 'iscrowd', 'ignore')),
                item['segmentation']['counts'],
            )
            if pixels and identity in seen:
                raise InvalidExample('duplicate mask', '')
        except InvalidExample as error:
            skipped.add(error.cause, _example(annotation, position, error.detail))
            continue
        seen.add(identity)
        objects.append(item)
        for cause, detail in remarks:
            warnings.add(cause, _example(annotation, position, detail))
    return objects


def _object(
    annotation, images: Mapping, categories: Mapping, is_lvis: bool
) -> tuple[Mapping, int, list[tuple[str, str]]]:
    """An object, the pixels of its mask, and causes and details of what is unusual.  Raises InvalidExample."""
    if not isinstance(annotation, dict):
        raise InvalidExample('not a JSON object', '')
    get = annotation.get
    image_id, category_id = identifier(get('image_id')), identifier(get('category_id'))
    if image_id not in images:
        raise InvalidExample('unknown image id', '')
    # LVIS has no crowds; its own code uses `ignore`, which COCOeval replaces by that of crowds.
    key = 'ignore' if is_lvis else 'iscrowd'
    ignore = flag(get(key))
    if ignore is None:
        raise InvalidExample(f'unclear {key}', reprlib.repr(get(key)))
    image = images[image_id]
    mask, pixels, changes = coco_json.read_segmentation(get('segmentation'), image['height'], image['width'])
    remarks = list(changes)
    if not pixels:
        remarks.append(('object without pixels, which is never found', ''))
    if category_id not in categories:
        remarks.append(('object of an unknown category, which counts for AR only', reprlib.repr(get('category_id'))))
        category_id = None
    area = coco_json.number(get('area'))
    if area is None or area < 0 or (pixels and not area):
        remarks.append(('object without valid area, that of its mask is taken', reprlib.repr(get('area'))))
        area = float(pixels)
    known = {'image_id': image_id, 'category_id': category_id, 'area': area}
    return {**known, 'iscrowd': ignore and not is_lvis, 'ignore': ignore, 'segmentation': mask}, pixels, remarks


def _example(annotation, position: int, detail: str) -> str:
    """Where something occurred in the list of annotations."""
    if not isinstance(annotation, dict):
        return f'annotations[{position}]'
    example = f'{coco_json.label(annotation.get("id"), position)} of image {reprlib.repr(annotation.get("image_id"))}'
    return f'{example}: {detail}' if detail else example
