"""Boxes around masks, and the suppression of those that say the same; as segment-anything and torchvision do it."""

from __future__ import annotations

import numpy as np


def mask_box(mask_HW: np.ndarray) -> np.ndarray:
    """float32 (x0, y0, x1, y1): first and last pixel of a bool mask; zeros if it is empty (utils/amg.py)."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not rows.size:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def nms(boxes_N4: np.ndarray, score_N: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes that stay, best score first: greedy, a box goes if its IoU with a kept one is greater.

    boxes_N4: x0, y0, x1, y1; an area is (x1 - x0) (y1 - y0).  Source: torchvision.ops.nms.
    """
    order = np.argsort(-score_N, kind='stable')
    boxes_N4 = boxes_N4[order].astype(np.float32)
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    alive_N, kept = np.ones(len(order), bool), []
    for n in range(len(order)):
        if not alive_N[n]:
            continue
        kept.append(order[n])
        later = boxes_N4[n + 1 :]
        low, high = np.maximum(later[:, :2], boxes_N4[n, :2]), np.minimum(later[:, 2:], boxes_N4[n, 2:])
        shared = (high - low).clip(0).prod(1)
        union = area_N[n] + area_N[n + 1 :] - shared
        with np.errstate(invalid='ignore'):
            alive_N[n + 1 :] &= ~(shared / union > threshold)
    return np.array(kept, int)
