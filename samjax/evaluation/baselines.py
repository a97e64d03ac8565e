"""Classical click baselines: segmenters of `samjax.evaluation.protocol` without learning, from colours and edges.

They are compared with the model in the same evaluation.  Their constants were chosen once, on training images of
BBBC038, BSDS500 and synthetic scenes.
"""

from __future__ import annotations

import abc

import numpy as np
from scipy import ndimage

from samjax.errors import SamjaxError
from samjax.masks.boxes import mask_box
from samjax.structs import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE


class Baseline(abc.ABC):
    """Predicts one object after the other; its state is the selected mask.

    A single click or box gives three masks.  Each further click segments a region in the same way, removes what is
    nearer to clicks of the other kind, and adds the region to the mask or subtracts it.  How a region is segmented is
    up to the subclass.
    """

    name: str

    @abc.abstractmethod
    def set_image(self, image_HW3: np.ndarray) -> None:
        """uint8 RGB; the next predictions are about this image."""
        self._size = image_HW3.shape[:2]

    @abc.abstractmethod
    def _click(self, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
        """Regions bool (3, H, W) around a pixel and their predicted IoU (3,)."""

    @abc.abstractmethod
    def _box(self, left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
        """As `_click`, for a box; its right column and bottom row are included."""

    def predict(self, points_NP2, labels_NP, previous_NHW):
        """See `samjax.evaluation.protocol.Segmenter`; the predicted IoU is float32.

        Raises SamjaxError if an object has neither a box nor a positive first click.
        """
        predictions = []
        for n in range(len(points_NP2)):
            previous_HW = None if previous_NHW is None else previous_NHW[n]
            predictions.append(self._predict_object(points_NP2[n], labels_NP[n], previous_HW))
        masks_NMHW = np.stack([masks_MHW for masks_MHW, _ in predictions])
        iou_NM = np.stack([iou_M for _, iou_M in predictions]).astype(np.float32)
        return masks_NMHW, iou_NM, masks_NMHW

    def _predict_object(self, points_P2, labels_P, previous_HW):
        height, width = self._size
        points_P2 = np.floor(points_P2).astype(int).clip(0, (width - 1, height - 1))
        is_click = (labels_P == POSITIVE) | (labels_P == NEGATIVE)
        points_K2, positive_K = points_P2[is_click], labels_P[is_click] == POSITIVE
        corners_22 = points_P2[(labels_P == BOX_TOP_LEFT) | (labels_P == BOX_BOTTOM_RIGHT)]
        if previous_HW is not None and len(points_K2):
            iou_M, mask_HW, used = np.full(1, 0.5), previous_HW, len(points_K2) - 1
        else:
            if len(corners_22):
                (masks_MHW, iou_M), used = self._box(*corners_22.ravel()), 0
            elif len(points_K2) and positive_K[0]:
                (masks_MHW, iou_M), used = self._click(*points_K2[0]), 1
            else:
                raise SamjaxError(f'{self.name} must start from a box or a positive click.')
            if len(points_K2) == used:
                return masks_MHW, iou_M
            mask_HW = masks_MHW[iou_M.argmax()]
        for k in range(used, len(points_K2)):
            opposite_K2 = points_K2[:k][positive_K[:k] != positive_K[k]]
            region_HW = self._region(*points_K2[k], opposite_K2)
            mask_HW = mask_HW | region_HW if positive_K[k] else mask_HW & ~region_HW
        return mask_HW[None], iou_M.max(keepdims=True)

    def _region(self, x, y, opposite_K2) -> np.ndarray:
        """The region around a pixel with the highest predicted IoU, where no opposite click is as near."""
        regions_MHW, iou_M = self._click(x, y)
        region_HW = regions_MHW[iou_M.argmax()]
        rows_H1, columns_1W = np.ogrid[: self._size[0], : self._size[1]]
        distance_HW = (columns_1W - x) ** 2 + (rows_H1 - y) ** 2
        for other_x, other_y in opposite_K2:
            region_HW = region_HW & (distance_HW < (columns_1W - other_x) ** 2 + (rows_H1 - other_y) ** 2)
        return region_HW

    def _ellipse(self, x, y, rx, ry) -> np.ndarray:
        """bool (H, W); radii in px, at least 1."""
        rows_H1, columns_1W = np.ogrid[: self._size[0], : self._size[1]]
        return ((columns_1W - x) / max(rx, 1)) ** 2 + ((rows_H1 - y) / max(ry, 1)) ** 2 <= 1

    def _box_and_ellipse(self, left, top, right, bottom, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """The box, and the ellipse in its middle whose axes are a fraction of its sides, bool (H, W)."""
        box_HW = np.zeros(self._size, bool)
        box_HW[top : bottom + 1, left : right + 1] = True
        rx, ry = fraction * (right - left + 1) / 2, fraction * (bottom - top + 1) / 2
        return box_HW, box_HW & self._ellipse((left + right) / 2, (top + bottom) / 2, rx, ry)


class FloodFill(Baseline):
    """A magic wand: the connected pixels whose colour is within a tolerance of the clicked one.

    Nine tolerances are tried; the three masks are the best of the small, the middle and the large ones, that is the
    mask whose border has the strongest edges, compared with the edges inside.  A box is flooded from its centre, and
    the flood is better the more of the box its own bounding box covers.
    """

    name = 'flood fill'

    SMOOTHING = 0.7  # px, standard deviation
    TOLERANCES = np.geomspace(3, 40, 9)  # distance in CIELAB
    MAX_FRACTION = 0.2  # of the image; a larger flood has leaked out of the object
    CORE = 0.75  # of the sides of a box: the ellipse that always belongs to the object
    MERIT_SCALE = 6.0  # merit with a predicted IoU of 0.5

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
        box_HW, core_HW = self._box_and_ellipse(left, top, right, bottom, self.CORE)
        floods = self._floods((left + right) // 2, (top + bottom) // 2)
        floods = [flood_HW & box_HW for flood_HW in floods]
        merits = [self.MERIT_SCALE * _bounding_box_area(flood_HW) / box_HW.sum() for flood_HW in floods]
        masks_MHW, iou_M = self._best_of_each_third(floods, merits)
        return masks_MHW | core_HW, iou_M

    def _floods(self, x, y) -> list[np.ndarray]:
        seed_3 = self._lab_HW3[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((0, 1))
        distance_HW = np.sqrt(np.square(self._lab_HW3 - seed_3).sum(2))
        distance_HW[y, x] = 0
        floods = []
        for tolerance in self.TOLERANCES:
            regions_HW, _ = ndimage.label(distance_HW <= tolerance)
            floods.append(_fill_holes(regions_HW == regions_HW[y, x]))
        return floods

    def _merit(self, flood_HW) -> float:
        if flood_HW.mean() > self.MAX_FRACTION:
            return 0.0
        inside = self._edge_HW[flood_HW].mean()
        return _border_strength(flood_HW, self._edge_HW) / (1 + inside) ** 0.25

    def _best_of_each_third(self, floods, merits):
        merit_33 = np.array(merits).reshape(3, 3)
        best_3 = 3 * np.arange(3) + merit_33.argmax(axis=1)
        merit_3 = merit_33.max(axis=1)
        return np.stack([floods[i] for i in best_3]), merit_3 / (merit_3 + self.MERIT_SCALE)


class GrabCut(Baseline):
    """Graph cut with colour models of object and background (Rother et al. 2004), by OpenCV.

    For a click three object sizes are tried, for a box three cores; the mask whose border has the strongest edges has
    the highest predicted IoU.
    """

    name = 'GrabCut'

    RADII = (0.045, 0.085, 0.15)  # of the short side: how large an object is around a click
    WINDOW_RADIUS = 2.5  # radii from the click to the sides of the window that is cut; beyond is background
    SEED_RADIUS = 0.25  # radii around the click that certainly belong to the object
    CORES = (0.6, 0.75, 0.9)  # of the sides of a box: the ellipse that certainly belongs to the object
    MARGIN = 0.15  # of the sides of a box: how far around it background is considered
    SMOOTHING = 0.7  # px, standard deviation; for the edges only
    MAX_WINDOW = 80  # px; larger windows are reduced to this
    ITERATIONS = 2
    MIN_PIXELS = 5  # of each colour model, which has five Gaussians
    STRENGTH_SCALE = 6.0  # edge strength with a predicted IoU of 0.5

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
        for radius in self.RADII:
            r = max(4.0, radius * min(self._size))
            half = int(self.WINDOW_RADIUS * r) + 1
            window = x - half, y - half, x + half, y + half
            seed_HW = self._ellipse(x, y, self.SEED_RADIUS * r, self.SEED_RADIUS * r)
            mask_HW = self._cut(window, seed_HW, self._ellipse(x, y, r, r), np.zeros_like(seed_HW))
            regions_HW, _ = ndimage.label(mask_HW)
            masks.append(_fill_holes(regions_HW == regions_HW[y, x]))
        return np.stack(masks), self._predicted_iou(masks)

    def _box(self, left, top, right, bottom):
        dx = max(4, round(self.MARGIN * (right - left)))
        dy = max(4, round(self.MARGIN * (bottom - top)))
        window = left - dx, top - dy, right + dx + 1, bottom + dy + 1
        masks = []
        for core in self.CORES:
            box_HW, core_HW = self._box_and_ellipse(left, top, right, bottom, core)
            masks.append(self._cut(window, core_HW, box_HW, ~box_HW))
        return np.stack(masks), self._predicted_iou(masks)

    def _predicted_iou(self, masks) -> np.ndarray:
        strength_M = np.array([_border_strength(mask_HW, self._edge_HW) for mask_HW in masks])
        return strength_M / (strength_M + self.STRENGTH_SCALE)

    def _cut(self, window, object_HW, probable_HW, background_HW) -> np.ndarray:
        """The mask, bool (H, W), cut within a window (left, top, right, bottom; ends excluded).

        `object_HW` is in it, `background_HW` is not; of the rest `probable_HW` is initialised as object.
        """
        cv2, (height, width) = self._cv2, self._size
        left, top, right, bottom = np.clip(window, 0, (width, height, width, height)).tolist()
        part = slice(top, bottom), slice(left, right)
        scale = min(1.0, self.MAX_WINDOW / max(bottom - top, right - left))
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        image_hw3 = cv2.resize(self._image_HW3[part], size, interpolation=cv2.INTER_AREA)
        label_HW = np.where(probable_HW[part], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        label_HW[background_HW[part]] = cv2.GC_BGD
        label_HW[object_HW[part]] = cv2.GC_FGD
        label_hw = cv2.resize(label_HW, size, interpolation=cv2.INTER_NEAREST)
        object_pixels = np.isin(label_hw, (cv2.GC_FGD, cv2.GC_PR_FGD)).sum()
        if min(object_pixels, label_hw.size - object_pixels) >= self.MIN_PIXELS:
            cv2.setRNGSeed(0)
            models = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.grabCut(image_hw3, label_hw, None, *models, self.ITERATIONS, cv2.GC_INIT_WITH_MASK)
        object_hw = np.isin(label_hw, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        mask_HW = np.zeros(self._size, bool)
        mask_HW[part] = cv2.resize(object_hw, (right - left, bottom - top)) > 0.5
        return (mask_HW | object_HW) & ~background_HW


def _smoothed(lab_HW3, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(lab_HW3.astype(np.float32), (sigma, sigma, 0), mode='nearest')


def _edges(lab_HW3) -> np.ndarray:
    """Strength of the colour edges, CIELAB units per px."""
    down_HW3, right_HW3 = (ndimage.sobel(lab_HW3, axis, mode='nearest') for axis in (0, 1))
    return np.sqrt((np.square(down_HW3) + np.square(right_HW3)).sum(2)) / 8


def _border_strength(mask_HW, edge_HW) -> float:
    """Mean edge strength over the outermost pixels of a mask; the border of the image is no edge."""
    border_HW = mask_HW & ~ndimage.binary_erosion(mask_HW, border_value=1)
    return float(edge_HW[border_HW].mean()) if border_HW.any() else 0.0


def _fill_holes(mask_HW) -> np.ndarray:
    """The mask and its holes, the regions that do not touch the border of the image."""
    regions_HW, count = ndimage.label(~mask_HW)
    outside = np.zeros(count + 1, bool)
    for edge in (regions_HW[0], regions_HW[-1], regions_HW[:, 0], regions_HW[:, -1]):
        outside[edge] = True
    return mask_HW | ~outside[regions_HW]


def _bounding_box_area(mask_HW) -> int:
    """Pixels in the bounding box of a mask that is not empty."""
    x0, y0, x1, y1 = mask_box(mask_HW).astype(int).tolist()
    return (x1 - x0 + 1) * (y1 - y0 + 1)
