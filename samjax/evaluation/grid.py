"""The masks of a regular grid of clicks over an image: the raw material of proposals and of edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samjax.automatic.crops import point_grid
from samjax.predictor import Frame, Predictor, Said, fill
from samjax.structs import MULTIMASK, NOT_A_POINT, POSITIVE


def grid_masks(
    predictor: Predictor, image_HW3: np.ndarray, side: int, batch: int
) -> tuple[Frame, Iterator[tuple[np.ndarray, float]]]:
    """The frame of an image, and low-resolution logits and expected IoU of three masks for each click of the grid.

    batch: clicks that are answered at once.
    """
    [frame], embed_BhwC = predictor.encode([image_HW3])
    points_N2 = frame.points(point_grid(side) * (image_HW3.shape[1], image_HW3.shape[0]))

    def answers():
        for first in range(0, len(points_N2), batch):
            some = points_N2[first : first + batch]
            labels_2 = np.array([POSITIVE, NOT_A_POINT], np.int32)
            said = [Said(np.stack([point_2, np.zeros(2, np.float32)]), labels_2, None) for point_2 in some]
            prompts = fill([said], (1, batch, 2), predictor.config.low_size)
            prediction = predictor.decode(embed_BhwC, prompts, MULTIMASK)
            low_NMyx, iou_NM = np.asarray(prediction.logits_BNMyx)[0], np.asarray(prediction.iou_BNM)[0]
            for n in range(len(some)):
                yield from zip(low_NMyx[n], iou_NM[n].tolist(), strict=True)

    return frame, answers()
