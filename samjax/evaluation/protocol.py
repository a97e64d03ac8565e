"""Evaluation of segmenters: simulated clicks and boxes in, scores out (arXiv 2304.02643, section 7.1).

A *segmenter* is the model or a classical baseline; anything with

    name                                          used in tables and file names
    set_image(image_HW3)                          uint8 RGB; the next answers are about this image
    answer(points_NP2, labels_NP, previous)       -> masks_NMHW, iou_NM, state

`points_NP2` is float32 (x, y) in pixels of the image and `labels_NP` says what they are (codes of
`samjax.structs`); all N objects of a call are prompted in the same way.  `masks_NMHW` is bool at the size of
the image and `iou_NM` the IoU the segmenter expects.  M is 3 for a lone prompt (one point or one box), else
1.  `state` is None or an array (N, M, ...): the entry of the mask that was chosen comes back as `previous` with
the next click; `previous` is None at the first.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from pycocotools import mask as coco_mask

from samjax.data.example import Example
from samjax.distributed.map import ResultJournal, choose, distributed_map
from samjax.errors import SamjaxError
from samjax.evaluation import clicks as user
from samjax.evaluation.metrics.statistics import Mean, mask_area, mask_iou, pearson, spearman
from samjax.inference.predictor import PackedPrompt, Predictor, pack_prompts
from samjax.structs import ALL_MASKS, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, MULTIMASK, NOT_A_POINT, SINGLE_MASK, Prompts

PICTURED_OBJECTS = 4  # per pictured image, spread over the sizes of its objects


@dataclasses.dataclass(frozen=True)
class Row:
    """How well one object was segmented."""

    image: str
    object: int  # index in the example
    area: int  # px
    iou_K: tuple[float, ...]  # of the confident answer after 1, 2, ... clicks
    iou_M: tuple[float, ...]  # of each mask answered to the first click
    predicted_M: tuple[float, ...]  # what the segmenter expected of them
    area_M: tuple[float, ...]  # their share of the image
    expected_K: tuple[float, ...]  # the IoU the segmenter expected of its confident answer after 1, 2, ... clicks
    box: float  # IoU of the confident answer to the box
    expected_box: float  # what the segmenter expected of it

    @property
    def picked(self) -> int:
        """The confident mask at the first click."""
        return int(np.argmax(self.predicted_M))

    @classmethod
    def read(cls, fields: dict) -> Row:
        """From what JSON makes of `dataclasses.asdict`."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclasses.dataclass(frozen=True)
class Trace:
    """What was asked and answered about one object, for `samjax.visualization.pictures`."""

    row: Row
    truth_HW: np.ndarray
    points_K2: np.ndarray
    labels_K: np.ndarray
    masks_MHW: np.ndarray  # at the first click
    answers_KHW: np.ndarray  # the confident answer after each click


@dataclasses.dataclass(frozen=True)
class Picture:
    image_HW3: np.ndarray
    traces: list[Trace]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Everything an evaluation found."""

    clicks: tuple[int, ...]  # after which mIoU is reported
    rows: list[Row]
    pictures: list[Picture]  # of the first images; these three are for process 0 only
    worst: list[Picture]  # objects with the least IoU at the first click
    best: list[Picture]  # and with the greatest
    images: int  # with objects
    images_without_objects: int
    seconds: float

    def means(self) -> dict[str, Mean]:
        """Scores as sums and counts over objects."""
        means = {f'miou@{k}': Mean.of([row.iou_K[k - 1] for row in self.rows]) for k in self.clicks}
        means['oracle@1'] = Mean.of([max(row.iou_M) for row in self.rows])
        means['box'] = Mean.of([row.box for row in self.rows])
        for slot in range(len(self.rows[0].iou_M) if self.rows else 0):
            number = slot + 1
            means[f'area@slot{number}'] = Mean.of([row.area_M[slot] for row in self.rows])
            means[f'picked@slot{number}'] = Mean.of([row.picked == slot for row in self.rows])
            means[f'best@slot{number}'] = Mean.of([np.argmax(row.iou_M) == slot for row in self.rows])
        return means

    def expected_and_achieved(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and actual IoU of every answer: each mask for one click, the one for more clicks or a box."""
        expected = [(*row.predicted_M, *row.expected_K[1:], row.expected_box) for row in self.rows]
        achieved = [(*row.iou_M, *row.iou_K[1:], row.box) for row in self.rows]
        return np.array(expected).reshape(-1), np.array(achieved).reshape(-1)

    def values(self) -> Iterator[tuple[str, float]]:
        """(name, value); areas are shares of the image, NaN stands for "cannot be said"."""
        for name, mean in self.means().items():
            yield name, mean.value
        pairs = self.expected_and_achieved()
        yield 'iou_spearman', spearman(*pairs)
        yield 'iou_pearson', pearson(*pairs)
        picks = [(row.predicted_M[row.picked], row.iou_M[row.picked]) for row in self.rows]
        yield 'iou_spearman@1', spearman(*np.array(picks).reshape(-1, 2).T)
        yield 'masks', len(self.rows)
        yield 'images', self.images
        yield 'images_without_objects', self.images_without_objects


class Interactive:
    """mIoU after k clicks: a deterministic user clicks on each object until `max(clicks)` clicks are made.

    The first answer is the most confident of three masks.  From the second click on a segmenter answers with one
    mask to all clicks so far and the state of its last answer.  A box around the object, the first and last
    pixel of the mask in x and y, is answered on its own.

    `first_click` is 'center' or 'random' (drawn from `seed` and the name of the image).  With `max_images` or
    `max_objects` (per image) the same random choice is taken at every call; 0 takes all.  Objects without pixels
    and images without objects are left out.  `prompt_batch_size` objects are asked about at once.  `pictures` of the first
    images are drawn, and of as many of the best and worst objects as `cases` says.  Of a source with more than 1.5
    times `max_masks` objects random images are taken until they have so many.
    """

    def __init__(
        self,
        source,
        clicks: tuple[int, ...],
        first_click: str,
        prompt_batch_size: int,
        pictures: int,
        cases: int,
        max_images: int,
        max_objects: int,
        seed: int,
        max_masks: int = 0,
    ):
        if not clicks or not all(isinstance(k, int) and k > 0 for k in clicks):
            raise SamjaxError(f'eval.clicks {tuple(clicks)} must be whole numbers from 1 up, at least one')
        if first_click not in ('center', 'random'):
            raise SamjaxError(f"eval.first_click {first_click!r} must be 'center' or 'random'.")
        self.source = source
        self.clicks = tuple(sorted(clicks))
        self.first_click = first_click
        self.prompt_batch_size = prompt_batch_size
        self.pictures = pictures
        self.cases = cases
        self.max_images = max_images
        self.max_objects = max_objects
        self.seed = seed
        self.max_masks = max_masks

    def measure(self, segmenters: Sequence, journal: ResultJournal | None = None) -> Outcome:
        """Asks about all images: `segmenters` are the same one, for each device of this process.

        Processes share the images out and all get the whole outcome.
        """
        start = time.monotonic()
        chosen = self._images()
        workers = [functools.partial(self._ask, chosen, segmenter) for segmenter in segmenters]
        answers = distributed_map(len(chosen), workers, f'evaluate {segmenters[0].name}', journal)
        by_place = [[Row.read(fields) for fields in answer] for answer in answers]
        with_objects = sum(map(bool, by_place))
        drawn = [], [], []
        if jax.process_index() == 0:
            drawn = self._draw(segmenters[0], chosen, by_place)
        rows = [row for of_image in by_place for row in of_image]
        seconds = time.monotonic() - start
        return Outcome(self.clicks, rows, *drawn, with_objects, len(chosen) - with_objects, seconds)

    def _ask(self, chosen: list[int], segmenter, place: int) -> list[dict]:
        example = self.source[chosen[place]]
        return [dataclasses.asdict(row) for row, _ in self._rows(segmenter, example, self._objects(example), [])]

    def _rows(self, segmenter, example: Example, objects: list[int], drawn: list[int]) -> Iterator:
        """Yields (row, trace, or None if the object is not to be drawn)."""
        if objects:
            segmenter.set_image(example.image.pixels())
        for first in range(0, len(objects), self.prompt_batch_size):
            yield from self._interact(segmenter, example, objects[first : first + self.prompt_batch_size], drawn)

    def _draw(self, segmenter, chosen: list[int], by_place: list[list[Row]]) -> tuple[list[Picture], ...]:
        """Asks again about what is to be seen: the first images, the worst and the best objects of different images."""
        present = [(place, rows) for place, rows in enumerate(by_place) if rows]
        first = [(place, _spread(rows)) for place, rows in present[: self.pictures]]
        low = sorted(((place, min(rows, key=_first_iou)) for place, rows in present), key=lambda it: _first_iou(it[1]))
        high = sorted(
            ((place, max(rows, key=_first_iou)) for place, rows in present), key=lambda it: -_first_iou(it[1])
        )
        worst, best = ([(place, [row]) for place, row in some[: self.cases]] for some in (low, high))
        return tuple([self._picture(segmenter, chosen, *one) for one in some] for some in (first, worst, best))

    def _picture(self, segmenter, chosen: list[int], place: int, rows: list[Row]) -> Picture:
        example, drawn = self.source[chosen[place]], [row.object for row in rows]
        found = self._rows(segmenter, example, self._objects(example), drawn)
        return Picture(example.image.pixels(), [trace for _, trace in found if trace])

    def _images(self) -> list[int]:
        limit, count = self.max_images, len(self.source)
        if self.max_masks:
            masks = np.array([len(example.rles) for example in self.source])
            order = np.random.default_rng(self.seed).permutation(count)  # as `choose` goes through them
            if masks.sum() > 1.5 * self.max_masks:
                enough = int(np.searchsorted(np.cumsum(masks[order]), self.max_masks)) + 1
                limit = min(limit or enough, enough)
        return choose(count, limit, np.random.default_rng(self.seed))

    def _objects(self, example: Example) -> list[int]:
        # One at a time: pycocotools cannot add up the areas of more than 255 masks with numpy 2.
        present = [i for i, rle in enumerate(example.rles) if coco_mask.area(rle) > 0]
        rng = self._rng(example)
        return [present[i] for i in choose(len(present), self.max_objects, rng)]

    def _rng(self, example: Example, *more: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(example.name.encode()), *more))

    def _interact(self, segmenter, example: Example, objects: list[int], drawn: list[int]):
        """Yields (row, trace or None) for each object."""
        truth_NHW = decode_masks([example.rles[i] for i in objects])
        kept = [n for n, i in enumerate(objects) if i in drawn]
        count, clicks = len(objects), self.clicks[-1]
        points_NK2 = np.zeros((count, clicks, 2), np.float32)
        labels_NK = np.zeros((count, clicks), np.int32)
        iou_NK, expected_NK = np.zeros((count, clicks)), np.zeros((count, clicks))
        for n, i in enumerate(objects):
            points_NK2[n, 0], labels_NK[n, 0] = (
                user.first_click(truth_NHW[n])
                if self.first_click == 'center'
                else user.random_click(truth_NHW[n], self._rng(example, i))
            )

        previous, kept_answers = None, []
        for k in range(clicks):
            masks_NMHW, predicted_NM, state = segmenter.answer(points_NK2[:, : k + 1], labels_NK[:, : k + 1], previous)
            answer_NHW, previous = _confident(masks_NMHW, predicted_NM, state)
            iou_NK[:, k], expected_NK[:, k] = mask_iou(answer_NHW, truth_NHW), predicted_NM.max(1)
            kept_answers.append(answer_NHW[kept])
            if k == 0:
                predicted_first_NM, kept_masks = predicted_NM, masks_NMHW[kept]
                iou_NM = mask_iou(masks_NMHW, truth_NHW[:, None])
                area_NM = mask_area(masks_NMHW) / truth_NHW[0].size
            if k + 1 < clicks:
                for n in range(count):
                    points_NK2[n, k + 1], labels_NK[n, k + 1] = user.next_click(truth_NHW[n], answer_NHW[n])

        corners_N22 = np.stack([_box(truth_HW) for truth_HW in truth_NHW])
        corner_labels_N2 = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (count, 1))
        masks_NMHW, predicted_NM, state = segmenter.answer(corners_N22, corner_labels_N2, None)
        answer_NHW, _ = _confident(masks_NMHW, predicted_NM, state)
        box_N = mask_iou(answer_NHW, truth_NHW)

        for n, i in enumerate(objects):
            row = Row(
                image=example.name,
                object=i,
                area=int(truth_NHW[n].sum()),
                iou_K=tuple(iou_NK[n].tolist()),
                iou_M=tuple(iou_NM[n].tolist()),
                predicted_M=tuple(predicted_first_NM[n].tolist()),
                area_M=tuple(area_NM[n].tolist()),
                expected_K=tuple(expected_NK[n].tolist()),
                box=float(box_N[n]),
                expected_box=float(predicted_NM[n].max()),
            )
            trace = None
            if n in kept:
                at = kept.index(n)
                answers_KHW = np.stack([answer_NHW[at] for answer_NHW in kept_answers])
                trace = Trace(row, truth_NHW[n], points_NK2[n], labels_NK[n], kept_masks[at], answers_KHW)
            yield row, trace


class SamSegmenter:
    """A SAM as segmenter.  Its state is the low-resolution logits, the mask prompt of the next click.

    Images, objects and prompts are padded to one static shape, so that two programs are compiled, once, for all
    images and objects: encode one image, and decode `prompt_batch_size` objects with up to `max_clicks` points or a box
    with `max_clicks - 1` points.
    """

    def __init__(self, name: str, predictor: Predictor, prompt_batch_size: int, max_clicks: int):
        self.name = name
        self._predictor = predictor
        self._object_batch = prompt_batch_size
        self._slots = max_clicks + 1  # one for NOT_A_POINT, or for the second corner of a box

    def set_image(self, image_HW3: np.ndarray) -> None:
        [self._frame], self._embed_BhwC = self._predictor.encode([image_HW3])

    def answer(self, points_NP2, labels_NP, previous_Nyx):
        """See the module.  Raises ValueError if there are more objects or points than there is room for."""
        count, prompts = len(points_NP2), self._prompts(points_NP2, labels_NP, previous_Nyx)
        prediction = self._predictor.decode(self._embed_BhwC, prompts, ALL_MASKS)
        tokens = list(MULTIMASK if _is_lone(labels_NP) else SINGLE_MASK)
        low_NMyx = np.asarray(prediction.logits_BNMyx)[0, :count, tokens].swapaxes(0, 1)
        iou_NM = np.asarray(prediction.iou_BNM)[0, :count, tokens].swapaxes(0, 1)
        masks_NMHW = np.empty((*iou_NM.shape, *self._frame.original), bool)
        for n, low_Myx in enumerate(low_NMyx):
            masks_NMHW[n] = self._frame.masks(low_Myx, as_logits=False)
        return masks_NMHW, iou_NM, low_NMyx

    def _prompts(self, points_NP2, labels_NP, previous_Nyx) -> Prompts:
        count, used = labels_NP.shape
        boxed = BOX_TOP_LEFT in labels_NP
        if count > self._object_batch or used + (not boxed) > self._slots:
            raise ValueError(
                f'{count} objects with {used} prompts do not fit into {self._object_batch} objects with '
                f'{self._slots} slots; ask in parts or make the segmenter larger.'
            )
        points_NP2 = self._frame.points(points_NP2)
        if not boxed:
            points_NP2 = np.pad(points_NP2, ((0, 0), (0, 1), (0, 0)))
            labels_NP = np.pad(labels_NP, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
        previous_N = [None] * count if previous_Nyx is None else previous_Nyx
        said = [PackedPrompt(*prompt) for prompt in zip(points_NP2, labels_NP, previous_N, strict=True)]
        return pack_prompts([said], (1, self._object_batch, self._slots), self._predictor.config.low_size)


def decode_masks(rles: list[dict]) -> np.ndarray:
    """COCO compressed RLEs of one image -> bool (N, H, W)."""
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)).astype(bool)


def _is_lone(labels_NP: np.ndarray) -> bool:
    """Whether the prompt is ambiguous: one point or one box, whatever mask comes with it."""
    prompts = labels_NP.shape[1]
    return prompts == 1 or (prompts == 2 and BOX_TOP_LEFT in labels_NP)


def _confident(masks_NMHW, predicted_NM, state_NM):
    """(masks, states or None) of the mask each object's segmenter trusts most."""
    each_N, picked_N = np.arange(len(predicted_NM)), predicted_NM.argmax(axis=1)
    state_N = None if state_NM is None else state_NM[each_N, picked_N]
    return masks_NMHW[each_N, picked_N], state_N


def _box(truth_HW: np.ndarray) -> np.ndarray:
    """float32 ((x, y), (x, y)): the first and the last pixel of a mask."""
    rows, columns = np.flatnonzero(truth_HW.any(axis=1)), np.flatnonzero(truth_HW.any(axis=0))
    return np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float32)


def _spread(rows: list[Row]) -> list[Row]:
    """Up to PICTURED_OBJECTS of an image, from the largest to the smallest."""
    by_area = sorted(rows, key=lambda row: row.area, reverse=True)
    places = np.linspace(0, len(by_area) - 1, min(PICTURED_OBJECTS, len(by_area)))
    return [by_area[i] for i in places.round().astype(int)]


def _first_iou(row: Row) -> float:
    return row.iou_K[0]
