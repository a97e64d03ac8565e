"""Automatic mask generation: grids of points on an image and its crops as prompts; good and distinct masks stay.

`AutomaticMaskGenerator` takes and returns what segment-anything's `SamAutomaticMaskGenerator` does.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from pycocotools import mask as coco

from samjax.errors import SamjaxError
from samjax.inference.automatic.crops import Crop, build_point_grids, check_point_grids, crop_boxes
from samjax.inference.automatic.propose import (
    SELECTED_BATCH,
    AmgThresholds,
    CropGeometry,
    Proposals,
    decode_selected,
    pad_taps,
    propose,
    tiling,
)
from samjax.inference.frame import Frame
from samjax.inference.predictor import Predictor, check_image
from samjax.masks import rle
from samjax.masks.boxes import mask_box, nms
from samjax.masks.regions import clean
from samjax.structs import MULTIMASK

OUTPUT_MODES = ('binary_mask', 'uncompressed_rle', 'coco_rle')
# Fields of `AmgConfig` with other rules than the rest.
WHOLE_NUMBERS = 'points_per_side', 'points_per_batch', 'crop_n_layers'
AT_LEAST_1 = 'points_per_side', 'points_per_batch', 'crop_n_points_downscale_factor'


@dataclasses.dataclass(frozen=True)
class AmgConfig:
    """Which points are prompts and which masks stay; names and defaults are segment-anything's, tuned for ViT-H.

    Fractions, ratios and IoUs are between 0 and 1.

    Raises:
        SamjaxError: a number is out of its range, or is none.
    """

    points_per_side: int | None = 32  # points along each side of the image; None: `point_grids` has them
    points_per_batch: int = 64  # points at once; memory grows with it
    pred_iou_thresh: float = 0.88  # masks must have a larger predicted IoU; 0: any
    stability_score_thresh: float = 0.95  # least IoU of the masks at +offset and -offset; 0: any
    stability_score_offset: float = 1.0  # of logits
    box_nms_thresh: float = 0.7  # of two boxes of a crop with a larger IoU the better one stays
    crop_n_layers: int = 0  # layer n adds 2^n x 2^n crops
    crop_nms_thresh: float = 0.7  # the same between crops, where the smaller crop's stays
    crop_overlap_ratio: float = 512 / 1500  # of crops in layer 1, to the image's shorter side
    crop_n_points_downscale_factor: int = 1  # layer n has this to the power of n times fewer points per side
    min_mask_region_area: int = 0  # px; smaller holes are filled and smaller islands removed
    max_mask_fraction: float = 1.0  # masks must cover less than this fraction of the image; 1: any
    drop_small_masks: bool = False  # a mask of small islands only is removed, instead of keeping its largest

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type == 'bool' or (name == 'points_per_side' and value is None):
                continue
            kind, text = (numbers.Integral, 'a whole number') if name in WHOLE_NUMBERS else (numbers.Real, 'a number')
            if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
                raise SamjaxError(f'{name} is {value!r}: give {text}')
            least = 1 if name in AT_LEAST_1 else 0
            if value < least:
                raise SamjaxError(f'{name} is {value}: give at least {least}')
            if value > 1 and name.endswith(('_thresh', '_ratio', '_fraction')):
                raise SamjaxError(f'{name} is {value}: give a fraction between 0 and 1')


PRESETS = {
    'original': AmgConfig(),
    # How the masks of SA-1B were made (paper, appendix B): 21 crops, and two rules that the released code lacks.
    'sa1b': AmgConfig(
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_mask_fraction=0.95,
        drop_small_masks=True,
    ),
}


class Candidate(NamedTuple):
    """A mask that passed all thresholds and NMS, without its pixels."""

    crop_index: int  # in the list of crops
    proposal_index: int  # in the crop's `Proposals`
    predicted_iou: float
    stability_score: float
    point_2: np.ndarray  # float64 (x, y), px of the image
    box_4: np.ndarray  # float32 x0, y0, x1, y1, px of the image, ends included


class EncodedCrop(NamedTuple):
    """A crop with its embedding and the scores of its masks, on the device."""

    crop: Crop
    frame: Frame
    embed_1hwC: jax.Array
    image_points_N2: np.ndarray  # float64, px of the image
    frame_points_N2: np.ndarray  # float32, the same in px of the frame, padded
    proposals: Proposals


class AutomaticMaskGenerator:
    """Generates masks for all objects of an image.

    `propose` is compiled once for each of five degrees of upscaling, whatever the sizes of images.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: AmgConfig = PRESETS['original'],
        point_grids: Sequence | None = None,
        output_mode: str = 'binary_mask',
    ):
        """point_grids: for each layer of crops, points (N, 2) as fractions of a crop, arrays or lists, instead of
        regular grids; `config.points_per_side` is then None, or left at its default.

        output_mode: of a record's `segmentation`: 'binary_mask', 'uncompressed_rle' or 'coco_rle'.

        Raises:
            SamjaxError: there are no points or two kinds of them, a layer of crops has none, a point grid is not as
                above, there are not as many as layers, or the output mode is unknown.
        """
        if output_mode not in OUTPUT_MODES:
            raise SamjaxError(f'output_mode {output_mode!r} is not one of {", ".join(OUTPUT_MODES)}.')
        if point_grids is not None:
            if config.points_per_side not in (None, AmgConfig.points_per_side):
                raise SamjaxError(
                    f'points_per_side {config.points_per_side} and point_grids are both given: set '
                    f'points_per_side=None to take the grids'
                )
            point_grids = check_point_grids(point_grids, config.crop_n_layers)
        elif config.points_per_side is None:
            raise SamjaxError('points_per_side is None and there are no point_grids: give one of them')
        else:
            point_grids = build_point_grids(
                config.points_per_side, config.crop_n_layers, config.crop_n_points_downscale_factor
            )
        self.predictor, self.config, self.output_mode = predictor, config, output_mode
        self._point_grids = point_grids
        self._thresholds = AmgThresholds(
            pred_iou_thresh=config.pred_iou_thresh,
            stability_score_thresh=config.stability_score_thresh,
            stability_score_offset=config.stability_score_offset,
            max_mask_fraction=config.max_mask_fraction,
            box_nms_thresh=config.box_nms_thresh,
            points_per_batch=config.points_per_batch,
        )
        batches = -(-max(map(len, point_grids)) // config.points_per_batch)
        self._padded_points = batches * config.points_per_batch

    def generate(
        self, image_HW3: np.ndarray, select: Callable[[list[Candidate]], list[Candidate]] = list
    ) -> list[dict]:
        """A record for each mask, in the order of segment-anything.

        image_HW3: uint8 RGB; select: which of the candidates become masks, and in which order.

        A record has `segmentation` (see `output_mode`), `area` in px, `bbox` (x, y, width, height; width is the last
        column minus the first), `predicted_iou`, `point_coords` [[x, y]], `stability_score` (0 without pixels) and
        `crop_box` (x, y, width, height).

        Raises:
            SamjaxError: the image has another type or shape.
        """
        crops, candidates = self._propose(image_HW3)
        candidates = select(candidates)
        masks = list(self._decode(crops, candidates, image_HW3.shape[:2]))
        boxes = [mask.box() for mask in masks]
        if self.config.min_mask_region_area > 0:
            candidates, masks, boxes = _remove_small_regions(candidates, masks, boxes, self.config)
        return [
            {
                'segmentation': mask.segmentation(self.output_mode),
                'area': mask.area(),
                'bbox': _xywh(box_4),
                'predicted_iou': candidate.predicted_iou,
                'point_coords': [candidate.point_2.tolist()],
                'stability_score': candidate.stability_score,
                'crop_box': _xywh(crops[candidate.crop_index].crop.box),
            }
            for candidate, mask, box_4 in zip(candidates, masks, boxes, strict=True)
        ]

    def candidates(self, image_HW3: np.ndarray) -> list[Candidate]:
        """The candidates that `generate` makes records of, in its order, with boxes and scores but without masks.

        Raises:
            SamjaxError: the image has another type or shape.
        """
        return self._propose(image_HW3)[1]

    def low_res_masks(self, image_HW3: np.ndarray) -> Iterator[tuple[Candidate, Frame, np.ndarray]]:
        """Each of the `candidates` with the frame of its crop and its low-resolution logits, float32 (y, x).

        Raises:
            SamjaxError: the image has another type or shape.
        """
        crops, candidates = self._propose(image_HW3)
        for candidate, low_res_yx in zip(candidates, self._decode_low_res(crops, candidates), strict=True):
            yield candidate, crops[candidate.crop_index].frame, low_res_yx

    def _propose(self, image_HW3: np.ndarray) -> tuple[list[EncodedCrop], list[Candidate]]:
        check_image(image_HW3)
        config = self.config
        crops = [
            self._encode_crop(image_HW3, crop)
            for crop in crop_boxes(*image_HW3.shape[:2], config.crop_n_layers, config.crop_overlap_ratio)
        ]
        candidates = [candidate for index, crop in enumerate(crops) for candidate in _crop_candidates(index, crop)]
        if len(crops) > 1:
            scores = [1 / np.float32(crops[candidate.crop_index].crop.area) for candidate in candidates]
            kept = _nms([candidate.box_4 for candidate in candidates], scores, config.crop_nms_thresh)
            candidates = [candidates[n] for n in kept]
        return crops, candidates

    def _encode_crop(self, image_HW3: np.ndarray, crop: Crop) -> EncodedCrop:
        """Encodes a crop and scores the masks of its points; returns before that is done."""
        height, width = image_HW3.shape[:2]
        pixels_hw3 = image_HW3[crop.y0 : crop.y1, crop.x0 : crop.x1]
        [frame], embed_1hwC = self.predictor.encode([pixels_hw3])
        crop_points_N2 = self._point_grids[crop.layer] * (pixels_hw3.shape[1], pixels_hw3.shape[0])
        count = len(crop_points_N2)
        frame_points_N2 = np.pad(frame.apply_coords(crop_points_N2), ((0, self._padded_points - count), (0, 0)))
        tile, window = tiling(frame, self.predictor.config.low_res_size)
        geometry = CropGeometry(
            size_2=np.array(pixels_hw3.shape[:2], np.int32),
            crop_box_4=np.array(crop.box, np.int32),
            image_box_4=np.array([0, 0, width, height], np.int32),
            row_taps=pad_taps(frame.row_taps),
            column_taps=pad_taps(frame.column_taps),
        )
        static = {'thresholds': self._thresholds, 'window': window, 'tile': tile}
        proposals = propose(*self.predictor.model, embed_1hwC, frame_points_N2, count, geometry, **static)
        image_points_N2 = crop_points_N2 + (crop.x0, crop.y0)
        return EncodedCrop(crop, frame, embed_1hwC, image_points_N2, frame_points_N2, proposals)

    def _decode_low_res(self, crops: Sequence[EncodedCrop], candidates: Sequence[Candidate]) -> Iterator[np.ndarray]:
        """The low-resolution logits (y, x) of each candidate."""
        low_res = {}  # (crop_index, proposal_index) -> batch of logits and index in it
        for crop_index, crop in enumerate(crops):
            selected = [c.proposal_index for c in candidates if c.crop_index == crop_index]
            for start in range(0, len(selected), SELECTED_BATCH):
                batch = np.array(selected[start : start + SELECTED_BATCH])
                padded = np.pad(batch, (0, SELECTED_BATCH - len(batch)))
                points_N2 = crop.frame_points_N2[padded // len(MULTIMASK)]
                mask_index_N = (padded % len(MULTIMASK)).astype(np.int32)
                low_res_Nyx = decode_selected(*self.predictor.model, crop.embed_1hwC, points_N2, mask_index_N)
                low_res |= {(crop_index, proposal): (low_res_Nyx, n) for n, proposal in enumerate(batch.tolist())}
        for candidate in candidates:
            low_res_Nyx, n = low_res[candidate.crop_index, candidate.proposal_index]
            yield np.asarray(low_res_Nyx)[n]

    def _decode(
        self, crops: Sequence[EncodedCrop], candidates: Sequence[Candidate], size: tuple[int, int]
    ) -> Iterator[CroppedMask]:
        """The mask of each candidate, computed around its box only.  size: (height, width) of the image."""
        for candidate, low_res_yx in zip(candidates, self._decode_low_res(crops, candidates), strict=True):
            crop = crops[candidate.crop_index]
            corner_2 = crop.crop.x0, crop.crop.y0
            x0, y0 = candidate.box_4[:2].astype(int) - corner_2
            x1, y1 = candidate.box_4[2:].astype(int) - corner_2
            # A margin of one pixel: here sums are rounded in another order than on the device.
            top, left = max(y0 - 1, 0), max(x0 - 1, 0)
            logits_hw = crop.frame.upscale(low_res_yx, slice(top, y1 + 2), slice(left, x1 + 2))
            yield CroppedMask(logits_hw > 0, crop.crop.y0 + top, crop.crop.x0 + left, size)


class CroppedMask(NamedTuple):
    """A mask of an image of `size` (H, W) px that is 0 outside of a rectangle whose top left pixel is (top, left)."""

    mask_hw: np.ndarray  # bool
    top: int
    left: int
    size: tuple[int, int]

    def full(self) -> np.ndarray:
        """bool (H, W)."""
        mask_HW = np.zeros(self.size, bool)
        h, w = self.mask_hw.shape
        mask_HW[self.top : self.top + h, self.left : self.left + w] = self.mask_hw
        return mask_HW

    def area(self) -> int:
        """In px."""
        return int(np.count_nonzero(self.mask_hw))

    def box(self) -> np.ndarray:
        """float32 x0, y0, x1, y1, ends included; zeros if the mask is empty."""
        if not self.mask_hw.any():
            return np.zeros(4, np.float32)
        return mask_box(self.mask_hw) + np.array([self.left, self.top] * 2, np.float32)

    def segmentation(self, output_mode: str):
        """In one of `OUTPUT_MODES`."""
        if output_mode == 'binary_mask':
            return self.full()
        counts = rle.runs_of_crop(self.mask_hw, self.top, self.left, self.size)
        uncompressed = {'size': list(self.size), 'counts': counts}
        if output_mode == 'uncompressed_rle':
            return uncompressed
        return rle.as_text(coco.frPyObjects(uncompressed, *self.size))


def _crop_candidates(crop_index: int, crop: EncodedCrop) -> list[Candidate]:
    """The masks of a crop that stay, best predicted IoU first."""
    iou_F, stability_F, box_F4, kept_F = jax.device_get(crop.proposals)
    corner_4 = np.array([crop.crop.x0, crop.crop.y0] * 2)
    return [
        Candidate(
            crop_index,
            index,
            float(iou_F[index]),
            float(stability_F[index]),
            crop.image_points_N2[index // len(MULTIMASK)],
            (box_F4[index] + corner_4).astype(np.float32),
        )
        for index in kept_F[kept_F >= 0].tolist()
    ]


def _nms(boxes: Sequence[np.ndarray], scores: Sequence[float], iou_threshold: float) -> list[int]:
    return nms(np.stack(boxes), np.array(scores), iou_threshold).tolist() if boxes else []


def _remove_small_regions(
    candidates: list[Candidate], masks: list[CroppedMask], boxes: list[np.ndarray], config: AmgConfig
) -> tuple[list[Candidate], list[CroppedMask], list[np.ndarray]]:
    """Masks without small holes and islands, after another NMS in which masks that did not change come first.

    Source: `postprocess_small_regions` of segment-anything's automatic_mask_generator.py.
    """
    cleaned, scores = [], []
    for candidate, mask, box_4 in zip(candidates, masks, boxes, strict=True):
        mask_HW, changed = clean(mask.full(), config.min_mask_region_area, config.drop_small_masks)
        if mask_HW is None:
            continue
        if changed:
            mask = CroppedMask(mask_HW, 0, 0, mask.size)
            box_4 = mask.box()
        cleaned.append((candidate, mask, box_4))
        scores.append(0.0 if changed else 1.0)
    iou_threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
    kept = [cleaned[n] for n in _nms([box_4 for *_, box_4 in cleaned], scores, iou_threshold)]
    return tuple(map(list, zip(*kept, strict=True))) if kept else ([], [], [])


def _xywh(box_4) -> list[float]:
    x0, y0, x1, y1 = (float(side) for side in box_4)
    return [x0, y0, x1 - x0, y1 - y0]
