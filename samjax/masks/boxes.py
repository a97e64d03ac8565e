"""Boxes around masks and non-maximum suppression (NMS), on the host and on the device.

A box is (x0, y0, x1, y1): the first and the last pixel, both included.  For IoU its area is (x1 - x0) (y1 - y0), as in
torchvision; boxes without area overlap with none.  NMS is greedy: the box with the best score stays, each box whose
IoU with a box that stays is greater than a threshold is removed, and so on; of equal scores the first index is better.
Source: torchvision.ops.nms.  `nms` and `nms_on_device` return the same indices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def mask_box(mask_HW: np.ndarray) -> np.ndarray:
    """float32 (x0, y0, x1, y1): first and last pixel of a bool mask; zeros if it is empty.

    Source: `batched_mask_to_box` of segment-anything's utils/amg.py.
    """
    rows = np.flatnonzero(mask_HW.any(1))
    if not rows.size:
        return np.zeros(4, np.float32)
    columns = np.flatnonzero(mask_HW[rows[0] : rows[-1] + 1].any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def nms(boxes_N4: np.ndarray, scores_N: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes that stay, best score first."""
    order = np.argsort(-scores_N, kind='stable')
    boxes_N4 = boxes_N4[order].astype(np.float32)
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    candidate_N, kept = np.ones(len(order), bool), []
    for n in range(len(order)):
        if not candidate_N[n]:
            continue
        kept.append(order[n])
        worse = boxes_N4[n + 1 :]
        start, end = np.maximum(worse[:, :2], boxes_N4[n, :2]), np.minimum(worse[:, 2:], boxes_N4[n, 2:])
        intersection = (end - start).clip(0).prod(1)
        union = area_N[n] + area_N[n + 1 :] - intersection
        with np.errstate(invalid='ignore'):
            candidate_N[n + 1 :] &= ~(intersection / union > iou_threshold)
    return np.array(kept, int)


def nms_on_device(boxes_N4, scores_N, candidate_N, iou_threshold: float) -> jax.Array:
    """The same inside of jit, for the boxes where `candidate_N` is True: int32 (N,), the indices, then -1."""
    boxes_N4 = boxes_N4.astype(jnp.float32)
    area_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])

    def keep_best(carry):
        candidate_N, kept_N, count = carry
        best = jnp.argmax(jnp.where(candidate_N, scores_N, -jnp.inf))
        start_N2 = jnp.maximum(boxes_N4[:, :2], boxes_N4[best, :2][None])
        end_N2 = jnp.minimum(boxes_N4[:, 2:], boxes_N4[best, 2:][None])
        intersection_N = jnp.prod(jnp.maximum(end_N2 - start_N2, 0), 1)
        iou_N = intersection_N / (area_N + area_N[best] - intersection_N)
        candidate_N &= ~(iou_N > iou_threshold) & (jnp.arange(len(scores_N)) != best)
        return candidate_N, kept_N.at[count].set(best.astype(jnp.int32)), count + 1

    kept_N = jnp.full(len(scores_N), -1, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0].any(), keep_best, (candidate_N, kept_N, 0))[1]
