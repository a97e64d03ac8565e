"""The click protocol: simulated clicks and boxes in, IoU of the predicted masks out (arXiv 2304.02643, section 7.1)."""

from __future__ import annotations

import dataclasses
import functools
import time
import typing
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from pycocotools import mask as coco_mask

from samjax.data.example import Example
from samjax.distributed.map import ResultJournal, choose_subset, distributed_map
from samjax.evaluation import clicks as simulated_user
from samjax.evaluation.eval_config import EvalConfig
from samjax.evaluation.metrics.statistics import Mean, pearson, spearman
from samjax.masks.boxes import mask_box
from samjax.masks.iou import mask_area, mask_iou
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

TRACED_OBJECTS = 4  # per image that is drawn, spread over the sizes of its objects


class Segmenter(typing.Protocol):
    """The model or a classical baseline, for a single image at a time."""

    name: str  # for tables and file names

    def set_image(self, image_HW3: np.ndarray) -> None:
        """uint8 RGB; the next predictions are about this image."""

    def predict(
        self, points_NP2: np.ndarray, labels_NP: np.ndarray, previous: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Masks of N objects, all prompted in the same way.

        Args:
          points_NP2: float32 (x, y) in pixels of the image.
          labels_NP: their meaning, codes of `samjax.structs`.
          previous: for each object the state of the mask that was selected before; None at the first prompt.

        Returns:
          masks bool (N, M, H, W) at the size of the image, their predicted IoU (N, M), and their state (N, M, ...), or
          None if the segmenter needs none.  M is 3 for an ambiguous prompt (a single point or box), else 1.
        """


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """How well an object was segmented.  The *selected* mask is the one with the highest predicted IoU."""

    image: str
    index: int  # of the object in the example
    area: int  # px
    iou_K: tuple[float, ...]  # of the selected mask after 1, 2, ... clicks
    iou_M: tuple[float, ...]  # of each mask for the first click
    predicted_iou_M: tuple[float, ...]  # of the same
    area_fraction_M: tuple[float, ...]  # of the same, relative to the image
    predicted_iou_K: tuple[float, ...]  # of the selected mask after 1, 2, ... clicks
    box_iou: float  # of the selected mask for the box
    predicted_box_iou: float  # of the same

    @property
    def selected(self) -> int:
        """Index of the mask that is selected at the first click."""
        return int(np.argmax(self.predicted_iou_M))

    @classmethod
    def from_json(cls, fields: dict) -> ObjectScores:
        """From what JSON makes of `dataclasses.asdict`."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclasses.dataclass(frozen=True)
class ObjectTrace:
    """Prompts and predictions of an object, for `samjax.evaluation.report.overlays`."""

    scores: ObjectScores
    truth_HW: np.ndarray
    points_K2: np.ndarray
    labels_K: np.ndarray
    masks_MHW: np.ndarray  # at the first click
    selected_KHW: np.ndarray  # the selected mask after each click


@dataclasses.dataclass(frozen=True)
class TracedImage:
    """An image with the traces of a few of its objects."""

    image_HW3: np.ndarray
    traces: list[ObjectTrace]


@dataclasses.dataclass(frozen=True)
class ProtocolResult:
    """Everything an evaluation of a segmenter yields."""

    clicks: tuple[int, ...]  # after which mIoU is reported
    objects: list[ObjectScores]
    first_images: list[TracedImage]  # these three are for process 0 only
    worst: list[TracedImage]  # objects with the least IoU at the first click
    best: list[TracedImage]  # and with the greatest
    images: int  # with objects
    images_without_objects: int
    seconds: float

    def means(self) -> dict[str, Mean]:
        """Scores as sums and counts over objects."""
        means = {f'miou@{k}': Mean.of([scores.iou_K[k - 1] for scores in self.objects]) for k in self.clicks}
        means['oracle@1'] = Mean.of([max(scores.iou_M) for scores in self.objects])
        means['box'] = Mean.of([scores.box_iou for scores in self.objects])
        for m in range(len(self.objects[0].iou_M) if self.objects else 0):
            means[f'area@slot{m + 1}'] = Mean.of([scores.area_fraction_M[m] for scores in self.objects])
            means[f'picked@slot{m + 1}'] = Mean.of([scores.selected == m for scores in self.objects])
            means[f'best@slot{m + 1}'] = Mean.of([np.argmax(scores.iou_M) == m for scores in self.objects])
        return means

    def predicted_and_actual_iou(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every prediction: each mask for the first click, the selected one for more clicks and for the box."""
        predicted = [(*s.predicted_iou_M, *s.predicted_iou_K[1:], s.predicted_box_iou) for s in self.objects]
        actual = [(*s.iou_M, *s.iou_K[1:], s.box_iou) for s in self.objects]
        return np.array(predicted).reshape(-1), np.array(actual).reshape(-1)

    def values(self) -> Iterator[tuple[str, float]]:
        """(name, value); areas are fractions of the image; NaN: not defined."""
        for name, mean in self.means().items():
            yield name, mean.value
        pairs = self.predicted_and_actual_iou()
        yield 'iou_spearman', spearman(*pairs)
        yield 'iou_pearson', pearson(*pairs)
        selected = [(s.predicted_iou_M[s.selected], s.iou_M[s.selected]) for s in self.objects]
        yield 'iou_spearman@1', spearman(*np.array(selected).reshape(-1, 2).T)
        yield 'masks', len(self.objects)
        yield 'images', self.images
        yield 'images_without_objects', self.images_without_objects


class Interactive:
    """mIoU after k clicks: a deterministic user clicks on each object until `max(config.clicks)` clicks are made.

    After the first click three masks are predicted, and the one with the highest predicted IoU is selected.  From the
    second click on a segmenter predicts a single mask from all clicks so far and the state of its last prediction.  A
    box around the object, the first and last pixel of the mask in x and y, is a prompt of its own.  Objects without
    pixels and images without objects are left out.

    source: `Example`s by index.
    seed: of random choices, and with the name of the image of random first clicks.
    max_images, max_objects (per image): a random choice, the same at every call; 0: all.
    max_masks: if the source has more than 1.5 times as many objects, random images are taken until they have so many.
    num_extremes: how many of the worst and of the best objects are traced, beside the first
    `config.num_visualizations` images.
    """

    def __init__(
        self,
        source: Sequence[Example],
        config: EvalConfig,
        seed: int,
        *,
        max_images: int = 0,
        max_objects: int = 0,
        max_masks: int = 0,
        num_extremes: int = 0,
    ):
        self._source, self._config, self._seed = source, config, seed
        self._clicks = tuple(sorted(config.clicks))
        self._max_images, self._max_objects, self._max_masks = max_images, max_objects, max_masks
        self._num_extremes = num_extremes

    def run(self, segmenters: Sequence[Segmenter], journal: ResultJournal | None = None) -> ProtocolResult:
        """Evaluates a segmenter on all images; `segmenters` are copies of it, for each device of this process.

        The images are distributed over the processes, and every process gets the scores of all.
        """
        start = time.monotonic()
        images = self._choose_images()
        workers = [functools.partial(self._score_image, images, segmenter) for segmenter in segmenters]
        results = distributed_map(len(images), workers, f'evaluate {segmenters[0].name}', journal)
        by_image = [[ObjectScores.from_json(fields) for fields in result] for result in results]
        with_objects = sum(map(bool, by_image))
        traced = [], [], []
        if jax.process_index() == 0:
            traced = self._trace(segmenters[0], images, by_image)
        objects = [scores for of_image in by_image for scores in of_image]
        seconds = time.monotonic() - start
        return ProtocolResult(self._clicks, objects, *traced, with_objects, len(images) - with_objects, seconds)

    def _choose_images(self) -> list[int]:
        limit, count = self._max_images, len(self._source)
        if self._max_masks:
            masks = np.array([len(example.rles) for example in self._source])
            order = np.random.default_rng(self._seed).permutation(count)  # the order of `choose_subset`
            if masks.sum() > 1.5 * self._max_masks:
                enough = int(np.searchsorted(np.cumsum(masks[order]), self._max_masks)) + 1
                limit = min(limit or enough, enough)
        return choose_subset(count, limit, np.random.default_rng(self._seed))

    def _choose_objects(self, example: Example) -> list[int]:
        # One by one: pycocotools cannot add up the areas of more than 255 masks with numpy 2.
        present = [i for i, rle in enumerate(example.rles) if coco_mask.area(rle) > 0]
        return [present[i] for i in choose_subset(len(present), self._max_objects, self._rng(example))]

    def _rng(self, example: Example, *key: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, zlib.crc32(example.name.encode()), *key))

    def _score_image(self, images: list[int], segmenter: Segmenter, index: int) -> list[dict]:
        example = self._source[images[index]]
        objects = self._choose_objects(example)
        return [dataclasses.asdict(scores) for scores, _ in self._predict_objects(segmenter, example, objects, [])]

    def _trace(
        self, segmenter: Segmenter, images: list[int], by_image: list[list[ObjectScores]]
    ) -> tuple[list[TracedImage], ...]:
        """Predicts again what is to be drawn: the first images, the worst and the best objects of different images."""
        present = [(index, objects) for index, objects in enumerate(by_image) if objects]
        first = [(index, _spread(objects)) for index, objects in present[: self._config.num_visualizations]]
        low = [(index, min(objects, key=_first_iou)) for index, objects in present]
        high = [(index, max(objects, key=_first_iou)) for index, objects in present]
        low.sort(key=lambda entry: _first_iou(entry[1]))
        high.sort(key=lambda entry: -_first_iou(entry[1]))
        worst, best = ([(index, [s]) for index, s in extremes[: self._num_extremes]] for extremes in (low, high))
        return tuple(
            [self._trace_image(segmenter, self._source[images[index]], objects) for index, objects in group]
            for group in (first, worst, best)
        )

    def _trace_image(self, segmenter: Segmenter, example: Example, objects: list[ObjectScores]) -> TracedImage:
        traced = [scores.index for scores in objects]
        predictions = self._predict_objects(segmenter, example, self._choose_objects(example), traced)
        return TracedImage(example.image.pixels(), [trace for _, trace in predictions if trace])

    def _predict_objects(
        self, segmenter: Segmenter, example: Example, objects: list[int], traced: list[int]
    ) -> Iterator[tuple[ObjectScores, ObjectTrace | None]]:
        """Scores of the objects with these indices; traces of those in `traced`."""
        size = self._config.prompt_batch_size
        if objects:
            segmenter.set_image(example.image.pixels())
        for first in range(0, len(objects), size):
            yield from self._predict_batch(segmenter, example, objects[first : first + size], traced)

    def _predict_batch(self, segmenter: Segmenter, example: Example, objects: list[int], traced: list[int]):
        truth_NHW = decode_masks([example.rles[i] for i in objects])
        traced_rows = [n for n, i in enumerate(objects) if i in traced]
        count, clicks = len(objects), self._clicks[-1]
        points_NK2 = np.zeros((count, clicks, 2), np.float32)
        labels_NK = np.zeros((count, clicks), np.int32)
        iou_NK, predicted_iou_NK = np.zeros((count, clicks)), np.zeros((count, clicks))
        for n, i in enumerate(objects):
            points_NK2[n, 0], labels_NK[n, 0] = (
                simulated_user.first_click(truth_NHW[n])
                if self._config.first_click == 'center'
                else simulated_user.random_click(truth_NHW[n], self._rng(example, i))
            )

        previous, selected_masks = None, []
        for k in range(clicks):
            masks_NMHW, predicted_NM, state = segmenter.predict(points_NK2[:, : k + 1], labels_NK[:, : k + 1], previous)
            mask_NHW, previous = _select(masks_NMHW, predicted_NM, state)
            iou_NK[:, k], predicted_iou_NK[:, k] = mask_iou(mask_NHW, truth_NHW), predicted_NM.max(1)
            selected_masks.append(mask_NHW[traced_rows])
            if k == 0:
                predicted_iou_NM, first_masks = predicted_NM, masks_NMHW[traced_rows]
                iou_NM = mask_iou(masks_NMHW, truth_NHW[:, None])
                area_fraction_NM = mask_area(masks_NMHW) / truth_NHW[0].size
            if k + 1 < clicks:
                for n in range(count):
                    points_NK2[n, k + 1], labels_NK[n, k + 1] = simulated_user.next_click(truth_NHW[n], mask_NHW[n])

        corners_N22 = np.stack([mask_box(truth_HW) for truth_HW in truth_NHW]).reshape(-1, 2, 2)
        corner_labels_N2 = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (count, 1))
        masks_NMHW, predicted_NM, state = segmenter.predict(corners_N22, corner_labels_N2, None)
        mask_NHW, _ = _select(masks_NMHW, predicted_NM, state)
        box_iou_N = mask_iou(mask_NHW, truth_NHW)

        for n, i in enumerate(objects):
            scores = ObjectScores(
                image=example.name,
                index=i,
                area=int(truth_NHW[n].sum()),
                iou_K=tuple(iou_NK[n].tolist()),
                iou_M=tuple(iou_NM[n].tolist()),
                predicted_iou_M=tuple(predicted_iou_NM[n].tolist()),
                area_fraction_M=tuple(area_fraction_NM[n].tolist()),
                predicted_iou_K=tuple(predicted_iou_NK[n].tolist()),
                box_iou=float(box_iou_N[n]),
                predicted_box_iou=float(predicted_NM[n].max()),
            )
            trace = None
            if n in traced_rows:
                row = traced_rows.index(n)
                selected_KHW = np.stack([mask_NHW[row] for mask_NHW in selected_masks])
                trace = ObjectTrace(scores, truth_NHW[n], points_NK2[n], labels_NK[n], first_masks[row], selected_KHW)
            yield scores, trace


def decode_masks(rles: list[dict]) -> np.ndarray:
    """COCO compressed RLEs of an image -> bool (N, H, W)."""
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)).astype(bool)


def _select(masks_NMHW, predicted_iou_NM, state_NM):
    """(masks, states or None) with the highest predicted IoU of each object."""
    each_N, selected_N = np.arange(len(predicted_iou_NM)), predicted_iou_NM.argmax(axis=1)
    state_N = None if state_NM is None else state_NM[each_N, selected_N]
    return masks_NMHW[each_N, selected_N], state_N


def _spread(objects: list[ObjectScores]) -> list[ObjectScores]:
    """Up to TRACED_OBJECTS of an image, from the largest to the smallest."""
    by_area = sorted(objects, key=lambda scores: scores.area, reverse=True)
    indices = np.linspace(0, len(by_area) - 1, min(TRACED_OBJECTS, len(by_area)))
    return [by_area[i] for i in indices.round().astype(int)]


def _first_iou(scores: ObjectScores) -> float:
    return scores.iou_K[0]
