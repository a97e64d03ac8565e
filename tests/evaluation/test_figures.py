"""Figures of scores are drawn for any number of segmenters and any predicted IoU."""

import pytest
from PIL import Image

from samjax.evaluation.protocol import ObjectScores, ProtocolResult
from samjax.evaluation.report import figures


def width(path):
    with Image.open(path) as image:
        return image.width


def make_result(predicted, actual, clicks=(1, 3)):
    objects = [
        ObjectScores('i', n, 10, (a, a, a), (a, a / 2, a / 3), (p, p - 1, p - 1), (0.5, 0.2, 0.1), (p, p, p), a, p)
        for n, (p, a) in enumerate(zip(predicted, actual, strict=True))
    ]
    return ProtocolResult(clicks, objects, [], [], [], 1, 0, 2.0)


def test_click_curves_of_several_segmenters(tmp_path):
    sam, flood = make_result([0.5, 0.9], [0.4, 0.8]), make_result([0.5, 0.5], [0.3, 0.3])
    figures.click_curves(tmp_path / 'curve.png', {'sam': sam, 'flood': flood})
    assert width(tmp_path / 'curve.png') > 500


@pytest.mark.parametrize('predicted', [[0.5, 0.9, 1.3], [0.7, 0.7, 0.7], [-0.2, 0.1, 0.3]])
def test_mask_slots_of_any_predicted_iou(tmp_path, predicted):
    figures.mask_slots(tmp_path / 'slots.png', 'sam', make_result(predicted, [0.1, 0.6, 1.0]))
    assert width(tmp_path / 'slots.png') > 500


def test_labels_keep_their_distance_and_order():
    moved = figures._separate([0.5, 0.9, 0.5, 0.5], 0.05)
    assert moved == pytest.approx([0.45, 0.9, 0.5, 0.55], abs=1e-3)
    assert figures._separate([0.2, 0.8], 0.05) == [0.2, 0.8]
