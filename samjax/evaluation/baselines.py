"""Classical click baselines: segmenters (see `samjax.evaluation.protocol`) that have learnt nothing.

They go by colour and edges only and are held against the model in the same evaluation.  Their
constants were chosen once for all, on training images of BBBC038, BSDS500 and drawn scenes.
"""

from __future__ import annotations

import abc

import numpy as np
from scipy import ndimage

from samjax.errors import SamjaxError
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE


class Baseline(abc.ABC):
    """Answers the objects one by one; the state it asks back is the mask that was chosen.

    A lone click or box gives three masks.  A further click finds a region in the same way, cuts off
    what is nearer to clicks of the other kind, and adds it to the mask or takes it away.  How a
    region is found is up to the subclass.
    """

    name: str

    @abc.abstractmethod
    def set_image(self, image_HW3: np.ndarray) -> None:
        """uint8 RGB; the next answers are about this image."""
        self._size = image_HW3.shape[:2]

    @abc.abstractmethod
    def _click(self, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
        """Regions bool (3, H, W) around a pixel and the IoU expected of each (3,)."""

    @abc.abstractmethod
    def _box(self, left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for a box; its right column and bottom row belong to it."""

    def answer(self, points_NP2, labels_NP, previous_NHW):
        """-> masks bool (N, M, H, W), expected IoU float32 (N, M), state; M is 3 for a lone prompt.

        Raises SamjaxError if an object has neither a box nor a positive first click.
        """
        answers = []
        for n in range(len(points_NP2)):
            previous_HW = None if previous_NHW is None else previous_NHW[n]
            answers.append(self._answer_one(points_NP2[n], labels_NP[n], previous_HW))
        masks_NMHW = np.stack([masks_MHW for masks_MHW, _ in answers])
        iou_NM = np.stack([iou_M for _, iou_M in answers]).astype(np.float32)
        return masks_NMHW, iou_NM, masks_NMHW

    def _answer_one(self, points_P2, labels_P, previous_HW):
        height, width = self._size
        points_P2 = np.floor(points_P2).astype(int).clip(0, (width - 1, height - 1))
        is_click = (labels_P == POSITIVE) | (labels_P == NEGATIVE)
        points_K2, positive_K = points_P2[is_click], labels_P[is_click] == POSITIVE
        corners_22 = points_P2[(labels_P == BOX_TOP_LEFT) | (labels_P == BOX_BOTTOM_RIGHT)]
        if previous_HW is not None and len(points_K2):
            iou_M, mask_HW, heeded = np.full(1, 0.5), previous_HW, len(points_K2) - 1
        else:
            if len(corners_22):
                (masks_MHW, iou_M), heeded = self._box(*corners_22.ravel()), 0
            elif len(points_K2) and positive_K[0]:
                (masks_MHW, iou_M), heeded = self._click(*points_K2[0]), 1
            else:
                raise SamjaxError(f'{self.name} must start from a box or a positive click.')
            if len(points_K2) == heeded:
                return masks_MHW, iou_M
            mask_HW = masks_MHW[iou_M.argmax()]
        for k in range(heeded, len(points_K2)):
            opposite_K2 = points_K2[:k][positive_K[:k] != positive_K[k]]
            region_HW = self._region(*points_K2[k], opposite_K2)
            mask_HW = mask_HW | region_HW if positive_K[k] else mask_HW & ~region_HW
        return mask_HW[None], iou_M.max(keepdims=True)

    def _region(self, x, y, opposite_K2) -> np.ndarray:
        """The most trusted region around a pixel, where no opposite click is as near."""
        regions_MHW, iou_M = self._click(x, y)
        region_HW = regions_MHW[iou_M.argmax()]
        rows_H1, columns_1W = np.ogrid[: self._size[0], : self._size[1]]
        away_HW = (columns_1W - x) ** 2 + (rows_H1 - y) ** 2
        for other_x, other_y in opposite_K2:
            region_HW = region_HW & (away_HW < (columns_1W - other_x) ** 2 + (rows_H1 - other_y) ** 2)
        return region_HW

    def _ellipse(self, x, y, rx, ry) -> np.ndarray:
        """bool (H, W); radii in px, at least 1."""
        rows_H1, columns_1W = np.ogrid[: self._size[0], : self._size[1]]
        return ((columns_1W - x) / max(rx, 1)) ** 2 + ((rows_H1 - y) / max(ry, 1)) ** 2 <= 1

    def _boxed(self, left, top, right, bottom, share: float) -> tuple[np.ndarray, np.ndarray]:
        """The box and the ellipse that fills a share of its sides, bool (H, W)."""
        box_HW = np.zeros(self._size, bool)
        box_HW[top : bottom + 1, left : right + 1] = True
        rx, ry = share * (right - left + 1) / 2, share * (bottom - top + 1) / 2
        return box_HW, box_HW & self._ellipse((left + right) / 2, (top + bottom) / 2, rx, ry)


class FloodFill(Baseline):
    """A magic wand: the connected pixels whose colour is within a tolerance of the clicked one.

    Of nine tolerances the three answers are the best small, middle and large one; best is the mask
    whose border lies on the strongest edges, compared with the edges within.  A box is flooded from
    its centre, and the flood is better the more of the box it spans.
    """

    name = 'flood fill'

    SMOOTHING = 0.7  # px, standard deviation
    TOLERANCES = np.geomspace(3, 40, 9)  # distance in CIELAB
    MAX_SHARE = 0.2  # of the image; a larger flood has run out of the object
    CORE = 0.75  # of the sides of a box: the ellipse that belongs to the object in any case
    TRUST = 6.0  # merit at which an IoU of 0.5 is expected

    def __init__(self):
        try:
            from skimage import color
        except ImportError as error:
            raise ImportError('The flood fill baseline needs scikit-image: pip install scikit-image') from error
        self._to_lab = color.rgb2lab

    def set_image(self, image_HW3: np.ndarray) -> None:
        super().set_image(image_HW3)
        self._lab_HW3 = _smoothed(self._to_lab(image_HW3), self.SMOOTHING)
        self._edge_HW = _edges(self._lab_HW3)

    def _click(self, x, y):
        floods = self._floods(x, y)
        return self._best_of_each_third(floods, [self._merit(flood_HW) for flood_HW in floods])

    def _box(self, left, top, right, bottom):
        box_HW, core_HW = self._boxed(left, top, right, bottom, self.CORE)
        floods = self._floods((left + right) // 2, (top + bottom) // 2)
        floods = [flood_HW & box_HW for flood_HW in floods]
        spans = [self.TRUST * _span(flood_HW) / box_HW.sum() for flood_HW in floods]
        masks_MHW, iou_M = self._best_of_each_third(floods, spans)
        return masks_MHW | core_HW, iou_M

    def _floods(self, x, y) -> list[np.ndarray]:
        seed_3 = self._lab_HW3[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((0, 1))
        away_HW = np.sqrt(np.square(self._lab_HW3 - seed_3).sum(2))
        away_HW[y, x] = 0
        floods = []
        for tolerance in self.TOLERANCES:
            regions_HW, _ = ndimage.label(away_HW <= tolerance)
            floods.append(_filled(regions_HW == regions_HW[y, x]))
        return floods

    def _merit(self, flood_HW) -> float:
        if flood_HW.mean() > self.MAX_SHARE:
            return 0.0
        within = self._edge_HW[flood_HW].mean()
        return _border_strength(flood_HW, self._edge_HW) / (1 + within) ** 0.25

    def _best_of_each_third(self, floods, merits):
        merit_33 = np.array(merits).reshape(3, 3)
        best_3 = 3 * np.arange(3) + merit_33.argmax(axis=1)
        merit_3 = merit_33.max(axis=1)
        return np.stack([floods[i] for i in best_3]), merit_3 / (merit_3 + self.TRUST)


class GrabCut(Baseline):
    """Graph cut with colour models of object and background (Rother et al. 2004), by OpenCV.

    A click is taken for an object of one of three sizes, and three cores of a box are tried; of the
    three answers the one whose border lies on the strongest edges is trusted most.
    """

    name = 'GrabCut'

    RADII = (0.045, 0.085, 0.15)  # of the short side: how large an object is around a click
    REACH = 2.5  # radii from the click to the sides of the window that is cut; beyond is background
    SURE = 0.25  # radii around the click that are object for certain
    CORES = (0.6, 0.75, 0.9)  # of the sides of a box: the ellipse that is object for certain
    RING = 0.15  # of the sides of a box: how far beyond it background is looked at
    SMOOTHING = 0.7  # px, standard deviation; for the edges only
    WINDOW = 80  # px; larger windows are reduced to this
    ITERATIONS = 2
    COLOURS = 5  # of each colour model, and so the least number of pixels
    TRUST = 6.0  # edge strength at which an IoU of 0.5 is expected

    def __init__(self):
        try:
            import cv2
        except ImportError as error:
            raise ImportError('The GrabCut baseline needs OpenCV: pip install opencv-python-headless') from error
        self._cv2 = cv2

    def set_image(self, image_HW3: np.ndarray) -> None:
        super().set_image(image_HW3)
        self._image_HW3 = image_HW3
        unit_HW3 = image_HW3.astype(np.float32) / 255
        lab_HW3 = self._cv2.cvtColor(unit_HW3, self._cv2.COLOR_RGB2LAB)
        self._edge_HW = _edges(_smoothed(lab_HW3, self.SMOOTHING))

    def _click(self, x, y):
        masks = []
        for share in self.RADII:
            r = max(4.0, share * min(self._size))
            reach = int(self.REACH * r) + 1
            window = x - reach, y - reach, x + reach, y + reach
            sure_HW = self._ellipse(x, y, self.SURE * r, self.SURE * r)
            mask_HW = self._cut(window, sure_HW, self._ellipse(x, y, r, r), np.zeros_like(sure_HW))
            regions_HW, _ = ndimage.label(mask_HW)
            masks.append(_filled(regions_HW == regions_HW[y, x]))
        return np.stack(masks), self._trust(masks)

    def _box(self, left, top, right, bottom):
        dx = max(4, round(self.RING * (right - left)))
        dy = max(4, round(self.RING * (bottom - top)))
        window = left - dx, top - dy, right + dx + 1, bottom + dy + 1
        masks = []
        for share in self.CORES:
            box_HW, core_HW = self._boxed(left, top, right, bottom, share)
            masks.append(self._cut(window, core_HW, box_HW, ~box_HW))
        return np.stack(masks), self._trust(masks)

    def _trust(self, masks) -> np.ndarray:
        strength_M = np.array([_border_strength(mask_HW, self._edge_HW) for mask_HW in masks])
        return strength_M / (strength_M + self.TRUST)

    def _cut(self, window, sure_HW, likely_HW, never_HW) -> np.ndarray:
        """The mask, bool (H, W), cut within a window (left, top, right, bottom; ends excluded).

        `sure_HW` is in it, `never_HW` is not; of the rest `likely_HW` starts as object.
        """
        cv2, (height, width) = self._cv2, self._size
        left, top, right, bottom = np.clip(window, 0, (width, height, width, height)).tolist()
        there = slice(top, bottom), slice(left, right)
        scale = min(1.0, self.WINDOW / max(bottom - top, right - left))
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        image_hw3 = cv2.resize(self._image_HW3[there], size, interpolation=cv2.INTER_AREA)
        kind_HW = np.where(likely_HW[there], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        kind_HW[never_HW[there]] = cv2.GC_BGD
        kind_HW[sure_HW[there]] = cv2.GC_FGD
        kind_hw = cv2.resize(kind_HW, size, interpolation=cv2.INTER_NEAREST)
        objects = np.isin(kind_hw, (cv2.GC_FGD, cv2.GC_PR_FGD)).sum()
        if min(objects, kind_hw.size - objects) >= self.COLOURS:
            cv2.setRNGSeed(0)
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(image_hw3, kind_hw, None, *models, self.ITERATIONS, cv2.GC_INIT_WITH_MASK)
        object_hw = np.isin(kind_hw, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        mask_HW = np.zeros(self._size, bool)
        mask_HW[there] = cv2.resize(object_hw, (right - left, bottom - top)) > 0.5
        return (mask_HW | sure_HW) & ~never_HW


def _smoothed(lab_HW3, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(lab_HW3.astype(np.float32), (sigma, sigma, 0), mode='nearest')


def _edges(lab_HW3) -> np.ndarray:
    """Strength of the colour edges, CIELAB units per px."""
    down_HW3, right_HW3 = (ndimage.sobel(lab_HW3, axis, mode='nearest') for axis in (0, 1))
    return np.sqrt((np.square(down_HW3) + np.square(right_HW3)).sum(2)) / 8


def _border_strength(mask_HW, edge_HW) -> float:
    """Mean edge strength over the outermost pixels of a mask; the image's own border is no edge."""
    border_HW = mask_HW & ~ndimage.binary_erosion(mask_HW, border_value=1)
    return float(edge_HW[border_HW].mean()) if border_HW.any() else 0.0


def _filled(mask_HW) -> np.ndarray:
    """The mask and its holes: what cannot be reached from the border of the image around it."""
    regions_HW, count = ndimage.label(~mask_HW)
    outside = np.zeros(count + 1, bool)
    for edge in (regions_HW[0], regions_HW[-1], regions_HW[:, 0], regions_HW[:, -1]):
        outside[edge] = True
    return mask_HW | ~outside[regions_HW]


def _span(mask_HW) -> int:
    """Pixels in the bounding box of a mask."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
