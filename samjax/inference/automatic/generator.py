"""Masks of everything in an image: grids of clicks on it and its crops, of which the good and the different ones stay.

`AutomaticMaskGenerator` takes and returns what segment-anything's `SamAutomaticMaskGenerator` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from pycocotools import mask as coco

from samjax.errors import SamjaxError
from samjax.inference.automatic.crops import Crop, crop_boxes, point_grids
from samjax.inference.automatic.propose import (
    SELECTED_BATCH,
    AmgThresholds,
    CropGeometry,
    Proposals,
    decode_selected,
    padded,
    propose,
    tiling,
)
from samjax.inference.predictor import Frame, Predictor, check_image
from samjax.masks import rle
from samjax.masks.boxes import mask_box, nms
from samjax.masks.regions import clean
from samjax.structs import MULTIMASK

OUTPUTS = ('binary_mask', 'uncompressed_rle', 'coco_rle')


@dataclasses.dataclass(frozen=True)
class AmgConfig:
    """Which clicks are made and which masks stay; names and defaults are the original's, tuned for ViT-H.

    Shares and IoUs are between 0 and 1.  Raises SamjaxError for a number that makes no sense.
    """

    points_per_side: int = 32  # clicks along each side of the image
    points_per_batch: int = 64  # clicks at once; memory grows with it
    pred_iou_thresh: float = 0.88  # masks must be expected to have a larger IoU; 0: any
    stability_score_thresh: float = 0.95  # least IoU of the masks at +offset and -offset; 0: any
    stability_score_offset: float = 1.0  # of logits
    box_nms_thresh: float = 0.7  # of two boxes of a crop with a larger IoU the better one stays
    crop_n_layers: int = 0  # layer n crops_ at 2^n x 2^n crops besides
    crop_nms_thresh: float = 0.7  # the same between crops, where the smaller crop's stays
    crop_overlap_ratio: float = 512 / 1500  # of crops in layer 1, to the image's shorter side
    crop_n_points_downscale_factor: int = 1  # layer n has this to the power of n times fewer clicks per side
    min_mask_region_area: int = 0  # px; smaller holes are filled and smaller islands removed
    max_mask_fraction: float = 1.0  # masks must cover less than this share of the image; 1: any
    drop_small_masks: bool = False  # a mask of small islands only goes, instead of keeping its largest

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.type == 'int' else 0
            if field.name in ('crop_n_layers', 'min_mask_region_area'):
                least = 0
            if value < least:
                raise SamjaxError(f'{field.name} is {value}: give at least {least}')
            if value > 1 and field.name.endswith(('_thresh', '_ratio', '_share')):
                raise SamjaxError(f'{field.name} is {value}: give a share between 0 and 1')


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
    """A mask that stays, before it is drawn."""

    crop: int  # its geometry in the list of crops
    row: int  # of the crop's proposals
    iou: float
    stability: float
    point_2: np.ndarray  # float64 (x, y), px of the image
    box_4: np.ndarray  # float32 x0, y0, x1, y1, px of the image, ends included


class EncodedCrop(NamedTuple):
    """A crop that was encoded and whose masks were candidates, on the device."""

    crop: Crop
    frame: Frame
    embed_1hwC: jax.Array
    points_N2: np.ndarray  # float64, px of the image
    clicks_S2: np.ndarray  # float32, the same in px of the frame, filled up
    proposals: Proposals


class AutomaticMaskGenerator:
    """Makes masks of everything in an image.

    Programs are compiled once for each of five degrees of enlargement, whatever the sizes of images.

    Raises:
        SamjaxError: a layer of crops has no clicks, there are not as many point grids as layers, or the output mode is
            unknown.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: AmgConfig = PRESETS['original'],
        point_grids_L: Sequence[np.ndarray] | None = None,
        output_mode: str = 'binary_mask',
    ):
        """point_grids_L: for each layer of crops, clicks (n, 2) as shares of a crop, instead of regular grids.

        output_mode: of a record's `segmentation`: 'binary_mask', 'uncompressed_rle' or 'coco_rle'.
        """
        if output_mode not in OUTPUTS:
            raise SamjaxError(f'output_mode {output_mode!r} is not one of {", ".join(OUTPUTS)}.')
        s = settings
        if point_grids_L is None:
            point_grids_L = point_grids(s.points_per_side, s.crop_n_layers, s.crop_n_points_downscale_factor)
        if len(point_grids_L) != s.crop_n_layers + 1:
            raise SamjaxError(
                f'there are {len(point_grids_L)} point grids for the image and {s.crop_n_layers} layers of crops: '
                f'give {s.crop_n_layers + 1}'
            )
        self.predictor, self.settings, self.output_mode = predictor, settings, output_mode
        self._grids = point_grids_L
        self._rules = AmgThresholds(
            s.pred_iou_thresh,
            s.stability_score_thresh,
            s.stability_score_offset,
            s.max_mask_fraction,
            s.box_nms_thresh,
            s.points_per_batch,
        )
        most = max(map(len, point_grids_L))
        self._room = -(-most // s.points_per_batch) * s.points_per_batch

    def generate(
        self, image_HW3: np.ndarray, choose: Callable[[list[Candidate]], list[Candidate]] = list
    ) -> list[dict]:
        """A record for each mask, in the order of the original.

        image_HW3: uint8 RGB; choose: which of the masks that would stay are drawn, and in which order.

        A record has `segmentation` (see `output_mode`), `area` in px, `bbox` (x, y, width, height; width is the last
        column minus the first), `predicted_iou`, `point_coords` [[x, y]], `stability_score` (0 without pixels) and
        `crop_box` (x, y, width, height).

        Raises:
            SamjaxError: it is no such image.
        """
        crops_, found = self._candidates(image_HW3)
        found = choose(found)
        size, s = image_HW3.shape[:2], self.settings
        masks = [Part(logits_hw > 0, *corner, size) for logits_hw, *corner in self._draw(crops_, found)]
        boxes = [mask.box() for mask in masks]
        if s.min_mask_region_area > 0:
            found, masks, boxes = _without_small_parts(found, masks, boxes, s)
        return [
            {
                'segmentation': mask.segmentation(self.output_mode),
                'area': mask.area(),
                'bbox': _xywh(box_4),
                'predicted_iou': one.iou,
                'point_coords': [one.point_2.tolist()],
                'stability_score': one.stability,
                'crop_box': _xywh(crops_[one.crop].crop[1:]),
            }
            for one, mask, box_4 in zip(found, masks, boxes, strict=True)
        ]

    def candidates(self, image_HW3: np.ndarray) -> list[Candidate]:
        """What `generate` makes records of, in its order, with boxes and scores but without masks.

        Raises:
            SamjaxError: it is no such image.
        """
        return self._candidates(image_HW3)[1]

    def _candidates(self, image_HW3: np.ndarray) -> tuple[list[EncodedCrop], list[Candidate]]:
        check_image(image_HW3)
        s = self.settings
        crops = crop_boxes(*image_HW3.shape[:2], s.crop_n_layers, s.crop_overlap_ratio)
        crops_ = [self._encode_crop(image_HW3, crop) for crop in crops]
        found = [one for number, crop_ in enumerate(crops_) for one in _stays(number, crop_)]
        if len(crops_) > 1:
            score_N = [1 / np.float32(_area(crops_[one.crop].crop)) for one in found]
            found = [found[n] for n in _kept([one.box_4 for one in found], score_N, s.crop_nms_thresh)]
        return crops_, found

    def _encode_crop(self, image_HW3: np.ndarray, crop: Crop) -> EncodedCrop:
        """Encodes a crop and judges the masks of its clicks; returns before that is done."""
        (height, width), part_HW3 = image_HW3.shape[:2], image_HW3[crop.y0 : crop.y1, crop.x0 : crop.x1]
        [frame], embed_1hwC = self.predictor.encode([part_HW3])
        points_N2 = self._grids[crop.layer] * (part_HW3.shape[1], part_HW3.shape[0])
        clicks_S2 = np.pad(frame.points(points_N2), ((0, self._room - len(points_N2)), (0, 0)))
        tile, window = tiling(frame, self.predictor.config.low_size)
        geometry = CropGeometry(
            np.array(part_HW3.shape[:2], np.int32),
            np.array(crop[1:], np.int32),
            np.array([0, 0, width, height], np.int32),
            padded(frame.rows),
            padded(frame.columns),
        )
        how = {'rules': self._rules, 'window': window, 'tile': tile}
        proposals = propose(*self.predictor.model, embed_1hwC, clicks_S2, len(points_N2), geometry, **how)
        return EncodedCrop(crop, frame, embed_1hwC, points_N2 + (crop.x0, crop.y0), clicks_S2, proposals)

    def _draw(self, crops_: Sequence[EncodedCrop], found: Sequence[Candidate]):
        """For each mask its logits around its box, and the top and left of that part of the image."""
        drawn = {}
        for number, crop_ in enumerate(crops_):
            rows = [one.row for one in found if one.crop == number]
            for first in range(0, len(rows), SELECTED_BATCH):
                some = np.array(rows[first : first + SELECTED_BATCH])
                filled = np.pad(some, (0, SELECTED_BATCH - len(some)))
                clicks_N2, mask_N = crop_.clicks_S2[filled // len(MULTIMASK)], filled % len(MULTIMASK)
                low_Nyx = decode_selected(*self.predictor.model, crop_.embed_1hwC, clicks_N2, mask_N.astype(np.int32))
                drawn |= {(number, row): (low_Nyx, n) for n, row in enumerate(some.tolist())}
        for one in found:
            crop_, (low_Nyx, n) = crops_[one.crop], drawn[one.crop, one.row]
            low_yx = np.asarray(low_Nyx)[n]
            x0, y0 = one.box_4[:2].astype(int) - crop_.crop[1:3]
            x1, y1 = one.box_4[2:].astype(int) - crop_.crop[1:3]
            # One pixel more: here sums are rounded in another order than on the device.
            top, left = max(y0 - 1, 0), max(x0 - 1, 0)
            logits_hw = crop_.frame.upscale(low_yx, slice(top, y1 + 2), slice(left, x1 + 2))
            yield logits_hw, crop_.crop.y0 + top, crop_.crop.x0 + left


class Part(NamedTuple):
    """A mask of an image of `size` (H, W) px that is 0 outside of a part whose top left pixel is (top, left)."""

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
        """float32 x0, y0, x1, y1, ends included; zeros if it is empty."""
        if not self.mask_hw.any():
            return np.zeros(4, np.float32)
        return mask_box(self.mask_hw) + np.array([self.left, self.top] * 2, np.float32)

    def segmentation(self, output_mode: str):
        """As one of `OUTPUTS`."""
        if output_mode == 'binary_mask':
            return self.full()
        runs = {'size': list(self.size), 'counts': rle.runs_of_part(self.mask_hw, self.top, self.left, self.size)}
        if output_mode == 'uncompressed_rle':
            return runs
        return rle.as_text(coco.frPyObjects(runs, *self.size))


def _stays(number: int, crop_: EncodedCrop) -> list[Candidate]:
    """The masks of a crop that stay, the best first."""
    iou_R, stability_R, box_R4, order_R = jax.device_get(crop_.proposals)
    corner_2 = np.array(crop_.crop[1:3])
    found = []
    for row in order_R[order_R >= 0].tolist():
        point_2 = crop_.points_N2[row // len(MULTIMASK)]
        box_4 = (box_R4[row] + np.tile(corner_2, 2)).astype(np.float32)
        found.append(Candidate(number, row, float(iou_R[row]), float(stability_R[row]), point_2, box_4))
    return found


def _kept(boxes: Sequence[np.ndarray], score_N: Sequence[float], overlap: float) -> list[int]:
    return nms(np.stack(boxes), np.array(score_N), overlap).tolist() if boxes else []


def _without_small_parts(found: list[Candidate], masks: list[Part], boxes: list[np.ndarray], settings: AmgConfig):
    """Masks without small holes and islands; of those whose boxes then say the same, untouched ones stay first."""
    kept_found, kept_masks, kept_boxes, score_N = [], [], [], []
    for one, mask, box_4 in zip(found, masks, boxes, strict=True):
        mask_HW, changed = clean(mask.full(), settings.min_mask_region_area, settings.drop_small_masks)
        if mask_HW is None:
            continue
        if changed:
            mask = Part(mask_HW, 0, 0, mask.size)
            box_4 = mask.box()
        kept_found.append(one)
        kept_masks.append(mask)
        kept_boxes.append(box_4)
        score_N.append(0.0 if changed else 1.0)
    order = _kept(kept_boxes, score_N, max(settings.box_nms_thresh, settings.crop_nms_thresh))
    return tuple([some[n] for n in order] for some in (kept_found, kept_masks, kept_boxes))


def _area(crop: Crop) -> int:
    return (crop.x1 - crop.x0) * (crop.y1 - crop.y0)


def _xywh(box_4) -> list[float]:
    x0, y0, x1, y1 = (float(side) for side in box_4)
    return [x0, y0, x1 - x0, y1 - y0]
