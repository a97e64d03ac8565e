"""Panels: tints, outlines, clicks and boxes lie where they belong."""

import numpy as np
import pytest

from samjax.structs import NEGATIVE, POSITIVE
from samjax.visualization import panels
from samjax.visualization.panels import Viewport

GREY_HW3 = np.full((112, 224, 3), 100, np.uint8)


def test_mask_is_tinted_outlined_and_clicked_where_it_is():
    truth_HW = np.zeros((112, 224), bool)
    truth_HW[10:30, 20:50] = True
    whole = Viewport.whole(112, 224)
    assert (whole.scale, whole.size) == (1, (224, 112))
    panel = whole.draw(GREY_HW3, truth_HW)
    assert panel.getpixel((35, 15)) == (71, 110, 157)  # half image, half blue
    assert panel.getpixel((20, 10)) == panels.PREDICTION
    assert panel.getpixel((19, 10)) == (100, 100, 100)
    whole.draw_outline(panel, truth_HW)
    assert panel.getpixel((20, 10)) == panels.TRUTH
    whole.draw_click(panel, np.array([30, 20]), POSITIVE)
    assert panel.getpixel((30, 20)) == panels.GREEN
    assert panel.getpixel((30 + 5, 20)) == panels.WHITE
    whole.draw_click(panel, np.array([40, 20]), NEGATIVE)
    assert panel.getpixel((40, 20)) == panels.RED


@pytest.mark.parametrize('viewport', [Viewport.whole(112, 224), Viewport(4, 6, 104, 206)])
def test_box_holds_its_last_pixels(viewport):
    panel = viewport.draw(GREY_HW3)
    viewport.draw_box(panel, (20, 10, 49, 29))
    white = np.argwhere((np.asarray(panel) == 255).all(2))
    scaled = np.array([10 - viewport.top, 20 - viewport.left, 30 - viewport.top, 50 - viewport.left]) * viewport.scale
    np.testing.assert_allclose([*white.min(0), *(white.max(0) + 1)], scaled, atol=1)


def test_close_up_holds_the_object_and_stays_inside_the_image():
    mask_HW = np.zeros((100, 300), bool)
    mask_HW[90:100, 0:40] = True
    assert Viewport.around(mask_HW) == Viewport(0, 0, 100, 100)
    mask_HW = np.zeros((300, 300), bool)
    mask_HW[100, 200] = True
    assert Viewport.around(mask_HW) == Viewport(76, 176, 124, 224)


def test_clicks_outside_a_close_up_are_left_out():
    viewport = Viewport(0, 60, 20, 80)
    panel = viewport.draw(np.full((60, 90, 3), 100, np.uint8))
    before = panel.copy()
    viewport.draw_click(panel, np.array([30, 20]), POSITIVE)
    assert panel == before


def test_long_captions_are_shortened():
    assert panels._shorten('short', 100) == 'short'
    shortened = panels._shorten('a very long name ' * 9, 100)
    assert shortened.endswith('...')
    assert panels.FONT.getlength(shortened) <= 100
