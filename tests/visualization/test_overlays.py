"""Predicted masks with their prompt, and contact sheets."""

import numpy as np
import pytest
from PIL import Image

from samjax.data.synthetic import Scenes
from samjax.inference.predictor import MaskPrediction
from samjax.inference.prompts import Prompt
from samjax.visualization.overlays import TINT, contact_sheet, draw_mask, draw_prediction
from samjax.visualization.panels import GAP, LARGE_PANEL, PANEL, PREDICTION


def test_predictions_come_best_first(tmp_path):
    """Mask 2 of a grey image is the best; it covers the left half, mask 1 nothing."""
    masks_MHW = np.zeros((2, 30, 60), bool)
    masks_MHW[1, :, :30] = True
    prediction = MaskPrediction(masks_MHW, np.array([0.2, 0.9], np.float32), np.zeros((2, 4, 4), np.float32))
    prompt = Prompt(np.array([[40.0, 15.0]]), np.array([1]), np.array([35.0, 5.0, 50.0, 25.0]))
    draw_prediction(tmp_path / 'a.png', np.full((30, 60, 3), 100, np.uint8), prompt, prediction)
    with Image.open(tmp_path / 'a.png') as sheet:
        assert sheet.width == GAP + 2 * (LARGE_PANEL + GAP)
        colours = [sheet.getpixel((GAP + column * (LARGE_PANEL + GAP) + 60, 100)) for column in range(2)]
    assert colours == [tuple(int(0.5 * 100 + 0.5 * side) for side in PREDICTION), (100, 100, 100)]


@pytest.mark.parametrize(('count', 'width'), [(2, GAP + 2 * (LARGE_PANEL + GAP)), (7, GAP + 6 * (PANEL + GAP))])
def test_contact_sheet_has_a_panel_per_image(tmp_path, count, width):
    source = Scenes(0, count, (32, 48))
    contact_sheet(tmp_path / 'sheet.png', [source[index] for index in range(count)])
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width == width


def test_mask_is_drawn_in_its_own_colour():
    image_HW3 = np.full((9, 9, 3), 100, np.uint8)
    drawn_HW3, mask_HW = image_HW3.copy(), np.zeros((9, 9), bool)
    mask_HW[2:7, 2:7] = True
    draw_mask(drawn_HW3, image_HW3, mask_HW, 0)
    assert drawn_HW3[2, 2] == pytest.approx([255, 51, 51], abs=1)  # the outline, red
    tint = [(1 - TINT) * 100 + TINT * side for side in (255, 51, 51)]
    assert drawn_HW3[4, 4] == pytest.approx(tint, abs=1)
    assert (drawn_HW3[~mask_HW] == 100).all()
