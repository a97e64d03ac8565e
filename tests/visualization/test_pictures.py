import numpy as np
import pytest
from PIL import Image

from samjax.evaluation.protocol import Outcome, Picture, Row, Trace
from samjax.structs import NEGATIVE, POSITIVE
from samjax.visualization import pictures
from samjax.visualization.pictures import Window


def make_trace(height=60, width=90, index=0, clicks=3):
    """An object of 20 x 30 px at (10, 20); the answers are shifted to the right."""
    truth_HW = np.zeros((height, width), bool)
    truth_HW[10:30, 20:50] = True
    masks_MHW = np.stack([np.roll(truth_HW, shift, axis=1) for shift in (12, 6, 0)])
    row = Row(
        'image', index, 600, (0.5,) * clicks, (0.4, 0.7, 1.0), (0.8, 0.6, 0.5), (0.1,) * 3, (0.8,) * clicks, 0.9, 0.8
    )
    points_K2 = np.array([[30 + 10 * k, 20] for k in range(clicks)], np.float32)
    labels_K = np.array([POSITIVE if k % 2 == 0 else NEGATIVE for k in range(clicks)])
    return Trace(row, truth_HW, points_K2, labels_K, masks_MHW, np.stack([truth_HW] * clicks))


def read(path):
    with Image.open(path) as image:
        return image.copy()


def make_picture(objects=2, **size):
    traces = [make_trace(index=i, **size) for i in range(objects)]
    return Picture(np.full((*traces[0].truth_HW.shape, 3), 100, np.uint8), traces)


def make_outcome(expected, achieved, clicks=(1, 3)):
    rows = [
        Row('i', n, 10, (a, a, a), (a, a / 2, a / 3), (e, e - 1, e - 1), (0.5, 0.2, 0.1), (e, e, e), a, e)
        for n, (e, a) in enumerate(zip(expected, achieved, strict=True))
    ]
    return Outcome(clicks, rows, [], [], [], 1, 0, 2.0)


@pytest.mark.parametrize(('clicks', 'columns'), [((1, 2, 3), 6), ((1, 3), 5), ((1,), 4)])
def test_overlay_has_a_row_per_object_and_a_column_per_answer(tmp_path, clicks, columns):
    picture = make_picture(objects=2, clicks=clicks[-1])
    pictures.overlay(tmp_path / 'a.png', picture, clicks)
    sheet = read(tmp_path / 'a.png')
    assert sheet.width == pictures.GAP + columns * (pictures.PANEL + pictures.GAP)
    assert sheet.height > 2 * (pictures.LINE + pictures.PANEL * 2 / 3)


def test_mask_grid_has_a_row_per_image_of_any_shape(tmp_path):
    mixed = [make_picture(), make_picture(height=200, width=60), make_picture(objects=1)]
    pictures.mask_grid(tmp_path / 'grid.png', mixed)
    sheet = read(tmp_path / 'grid.png')
    assert sheet.width == pictures.GAP + 5 * (pictures.PANEL + pictures.GAP)
    assert sheet.height > pictures.PANEL * (2 / 3 + 1 + 2 / 3)


def test_mask_is_tinted_outlined_and_clicked_where_it_is():
    trace = make_trace(height=112, width=224)
    whole = Window(0, 0, 112, 224)
    assert (whole.scale, whole.size) == (1, (224, 112))
    image_HW3 = np.full((112, 224, 3), 100, np.uint8)
    panel = whole.panel(image_HW3, trace.truth_HW)
    assert panel.getpixel((35, 15)) == (71, 110, 157)  # half image, half blue
    assert panel.getpixel((20, 10)) == pictures.ANSWER
    assert panel.getpixel((19, 10)) == (100, 100, 100)
    whole.outline(panel, trace.truth_HW)
    assert panel.getpixel((20, 10)) == pictures.TRUTH
    whole.click(panel, trace.points_K2[0], trace.labels_K[0])
    assert panel.getpixel((30, 20)) == pictures.GREEN
    assert panel.getpixel((30 + 5, 20)) == pictures.WHITE
    whole.click(panel, trace.points_K2[1], trace.labels_K[1])
    assert panel.getpixel((40, 20)) == pictures.RED


def test_close_up_holds_the_object_and_stays_inside_the_image():
    mask_HW = np.zeros((100, 300), bool)
    mask_HW[90:100, 0:40] = True
    top, left, bottom, right = Window.around(mask_HW).corners
    assert (top, left, bottom, right) == (0, 0, 100, 100)
    mask_HW = np.zeros((300, 300), bool)
    mask_HW[100, 200] = True
    assert Window.around(mask_HW).corners == (76, 176, 124, 224)


def test_clicks_outside_a_close_up_are_left_out():
    trace = make_trace()
    window = Window(0, 60, 20, 80)
    panel = window.panel(np.full((60, 90, 3), 100, np.uint8))
    before = panel.copy()
    window.click(panel, trace.points_K2[0], trace.labels_K[0])
    assert panel == before


def test_long_captions_are_shortened():
    assert pictures._fit('short', 100) == 'short'
    fitted = pictures._fit('a very long name ' * 9, 100)
    assert fitted.endswith('...')
    assert pictures.FONT.getlength(fitted) <= 100


def test_curve_of_several_segmenters(tmp_path):
    one, two = make_outcome([0.5, 0.9], [0.4, 0.8]), make_outcome([0.5, 0.5], [0.3, 0.3])
    pictures.curve(tmp_path / 'curve.png', {'sam': one, 'flood': two})
    assert read(tmp_path / 'curve.png').width > 500


@pytest.mark.parametrize('expected', [[0.5, 0.9, 1.3], [0.7, 0.7, 0.7], [-0.2, 0.1, 0.3]])
def test_slots_of_any_predicted_iou(tmp_path, expected):
    pictures.slots(tmp_path / 'slots.png', 'sam', make_outcome(expected, [0.1, 0.6, 1.0]))
    assert read(tmp_path / 'slots.png').width > 500


def test_labels_keep_their_distance_and_order():
    placed = pictures._apart([0.5, 0.9, 0.5, 0.5], 0.05)
    assert placed == pytest.approx([0.45, 0.9, 0.5, 0.55], abs=1e-3)
    assert pictures._apart([0.2, 0.8], 0.05) == [0.2, 0.8]
