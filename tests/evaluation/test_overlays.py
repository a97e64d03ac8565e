"""Overlays of the click protocol: a row per object or image, a column per prediction."""

import numpy as np
import pytest
from PIL import Image

from samjax.evaluation.protocol import ObjectScores, ObjectTrace, TracedImage
from samjax.evaluation.report.overlays import draw_first_clicks, draw_objects
from samjax.structs import NEGATIVE, POSITIVE
from samjax.visualization.panels import GAP, LINE, PANEL


def make_trace(height=60, width=90, index=0, clicks=3):
    """An object of 20 x 30 px at (10, 20); the masks are shifted to the right."""
    truth_HW = np.zeros((height, width), bool)
    truth_HW[10:30, 20:50] = True
    masks_MHW = np.stack([np.roll(truth_HW, shift, axis=1) for shift in (12, 6, 0)])
    scores = ObjectScores(
        'image', index, 600, (0.5,) * clicks, (0.4, 0.7, 1.0), (0.8, 0.6, 0.5), (0.1,) * 3, (0.8,) * clicks, 0.9, 0.8
    )
    points_K2 = np.array([[30 + 10 * k, 20] for k in range(clicks)], np.float32)
    labels_K = np.array([POSITIVE if k % 2 == 0 else NEGATIVE for k in range(clicks)])
    return ObjectTrace(scores, truth_HW, points_K2, labels_K, masks_MHW, np.stack([truth_HW] * clicks))


def read(path):
    with Image.open(path) as image:
        return image.copy()


def make_traced_image(objects=2, **size):
    traces = [make_trace(index=i, **size) for i in range(objects)]
    return TracedImage(np.full((*traces[0].truth_HW.shape, 3), 100, np.uint8), traces)


@pytest.mark.parametrize(('clicks', 'columns'), [((1, 2, 3), 6), ((1, 3), 5), ((1,), 4)])
def test_objects_have_a_row_each_and_a_column_per_prediction(tmp_path, clicks, columns):
    traced = make_traced_image(objects=2, clicks=clicks[-1])
    draw_objects(tmp_path / 'a.png', traced, clicks)
    sheet = read(tmp_path / 'a.png')
    assert sheet.width == GAP + columns * (PANEL + GAP)
    assert sheet.height > 2 * (LINE + PANEL * 2 / 3)


def test_first_clicks_have_a_row_per_image_of_any_shape(tmp_path):
    mixed = [make_traced_image(), make_traced_image(height=200, width=60), make_traced_image(objects=1)]
    draw_first_clicks(tmp_path / 'grid.png', mixed)
    sheet = read(tmp_path / 'grid.png')
    assert sheet.width == GAP + 5 * (PANEL + GAP)
    assert sheet.height > PANEL * (2 / 3 + 1 + 2 / 3)
