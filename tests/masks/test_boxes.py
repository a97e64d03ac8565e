"""Boxes of masks and non-maximum suppression, by hand, and the same on the host and on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.masks.boxes import mask_box, nms, nms_on_device


def test_mask_box_worked_example():
    mask_HW = np.zeros((4, 6), bool)
    assert mask_box(mask_HW).tolist() == [0, 0, 0, 0]
    mask_HW[1:3, 2] = mask_HW[2, 4] = True
    assert mask_box(mask_HW).tolist() == [2, 1, 4, 2]
    assert mask_box(np.ones((4, 6), bool)).tolist() == [0, 0, 5, 3]
    assert mask_box(mask_HW).dtype == np.float32


def test_nms_worked_example():
    boxes_N4 = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 4]], np.float32)
    scores_N = np.array([0.5, 0.9, 0.1, 0.6])
    assert nms(boxes_N4, scores_N, 0.7).tolist() == [1, 3, 2]  # 0 has IoU .9 with 1; 3 has 4/9 with it
    assert nms(boxes_N4, scores_N, 0.4).tolist() == [1, 2]
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []
    assert nms(np.zeros((2, 4)), np.array([1.0, 2.0]), 0.5).tolist() == [1, 0]  # no area: no overlap


@pytest.mark.parametrize('count', [1, 2, 30, 300])
def test_nms_on_device_keeps_what_nms_keeps(count):
    rng = np.random.default_rng(count)
    corners_N2 = rng.integers(0, 40, (count, 2))
    boxes_N4 = np.concatenate([corners_N2, corners_N2 + rng.integers(0, 30, (count, 2))], 1).astype(np.int32)
    scores_N = rng.integers(0, 10, count).astype(np.float32)  # many ties
    candidate_N = rng.random(count) < 0.8
    for threshold in (0.0, 0.3, 0.7, 1.0):
        kept_N = jax.jit(nms_on_device)(jnp.asarray(boxes_N4), jnp.asarray(scores_N), candidate_N, threshold)
        expected = np.flatnonzero(candidate_N)[nms(boxes_N4[candidate_N], scores_N[candidate_N], threshold)]
        assert kept_N.tolist() == expected.tolist() + [-1] * (count - len(expected))


def test_nms_is_that_of_torchvision():
    def slow(boxes_N4, scores_N, threshold):
        remaining, kept = sorted(range(len(scores_N)), key=lambda n: -scores_N[n]), []
        while remaining:
            best = remaining.pop(0)
            kept.append(best)
            remaining = [n for n in remaining if iou(boxes_N4[best], boxes_N4[n]) <= threshold]
        return kept

    def iou(a, b):
        intersection = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)

    rng = np.random.default_rng(0)
    for threshold in (0.3, 0.7):
        corners_N2 = rng.uniform(0, 20, (60, 2))
        boxes_N4 = np.concatenate([corners_N2, corners_N2 + rng.uniform(1, 20, (60, 2))], 1)
        scores_N = rng.random(60)
        assert nms(boxes_N4, scores_N, threshold).tolist() == slow(boxes_N4, scores_N, threshold)
