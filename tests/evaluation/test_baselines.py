import sys

import numpy as np
import pytest

from samjax.errors import SamjaxError
from samjax.evaluation import baselines
from samjax.evaluation.baselines import FloodFill, GrabCut
from samjax.structs import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE

BOTH = pytest.mark.parametrize('segmenter', [FloodFill, GrabCut])


def two_squares():
    """48 x 72, noisy: a red square at rows 8-23, columns 10-25, a green one at columns 46-61."""
    rng = np.random.default_rng(0)
    image_HW3 = np.full((48, 72, 3), (60, 60, 90), np.uint8)
    image_HW3[8:24, 10:26] = (200, 60, 50)
    image_HW3[8:24, 46:62] = (60, 190, 70)
    return image_HW3 + rng.integers(0, 8, image_HW3.shape, np.uint8)


def square(top, left):
    mask_HW = np.zeros((48, 72), bool)
    mask_HW[top : top + 16, left : left + 16] = True
    return mask_HW


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def ready(segmenter, image_HW3):
    made = segmenter()
    made.set_image(image_HW3)
    return made


def predict(segmenter, points, labels, previous=None):
    return segmenter.predict(np.array(points, np.float32), np.array(labels, np.int32), previous)


def confident(masks_NMHW, iou_NM):
    return masks_NMHW[np.arange(len(iou_NM)), iou_NM.argmax(axis=1)]


@BOTH
def test_one_click_gives_three_masks_and_the_best_has_the_highest_predicted_iou(segmenter):
    made = ready(segmenter, two_squares())
    masks_NMHW, iou_NM, state = predict(made, [[[17, 15]], [[53, 16]]], [[POSITIVE], [POSITIVE]])
    assert masks_NMHW.shape == (2, 3, 48, 72)
    assert masks_NMHW.dtype == bool
    assert iou_NM.shape == (2, 3)
    assert iou_NM.dtype == np.float32
    assert ((iou_NM >= 0) & (iou_NM <= 1)).all()
    assert state.shape[:2] == (2, 3)
    red_HW, green_HW = confident(masks_NMHW, iou_NM)
    assert iou(red_HW, square(8, 10)) > 0.9
    assert iou(green_HW, square(8, 46)) > 0.9


@BOTH
def test_box_gives_three_masks_within_the_box(segmenter):
    made = ready(segmenter, two_squares())
    labels = [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    masks_NMHW, iou_NM, _ = predict(made, [[[10, 8], [25, 23]]], labels)
    assert masks_NMHW.shape == (1, 3, 48, 72)
    assert not (masks_NMHW & ~square(8, 10)).any()
    assert iou(confident(masks_NMHW, iou_NM)[0], square(8, 10)) > 0.85
    half_NMHW, _, _ = predict(made, [[[10, 8], [17, 23]]], labels)
    assert not half_NMHW[..., 18:].any()  # though the square goes on


@BOTH
def test_second_click_adds_or_removes_a_region(segmenter):
    made = ready(segmenter, two_squares())
    red_NHW = square(8, 10)[None]
    points = [[[17, 15], [53, 16]]]
    both_NMHW, iou_NM, _ = predict(made, points, [[POSITIVE, POSITIVE]], red_NHW)
    assert both_NMHW.shape == (1, 1, 48, 72)
    assert iou_NM.shape == (1, 1)
    assert iou(both_NMHW[0, 0], square(8, 10) | square(8, 46)) > 0.9
    two_NHW = red_NHW | square(8, 46)
    less_NMHW, _, _ = predict(made, points, [[POSITIVE, NEGATIVE]], two_NHW)
    assert iou(less_NMHW[0, 0], square(8, 10)) > 0.9


@BOTH
def test_clicks_without_a_state_are_used_in_their_order(segmenter):
    made = ready(segmenter, two_squares())
    points, labels = [[[17, 15], [53, 16], [60, 40]]], [[POSITIVE, POSITIVE, NEGATIVE]]
    at_once, _, _ = predict(made, points, labels)
    first, iou_NM, _ = predict(made, [points[0][:1]], [labels[0][:1]])
    state_NHW = confident(first, iou_NM)
    for k in (2, 3):
        step, _, state_NMHW = predict(made, [points[0][:k]], [labels[0][:k]], state_NHW)
        state_NHW = state_NMHW[:, 0]
    np.testing.assert_array_equal(at_once, step)


@BOTH
def test_a_region_stays_nearer_to_its_own_click(segmenter):
    flat_HW3 = np.full((40, 60, 3), 120, np.uint8)  # no edge: only the clicks say what is what
    made = ready(segmenter, flat_HW3)
    before_NHW = np.ones((1, 40, 60), bool)
    points = [[[10, 20], [50, 20]]]
    masks_NMHW, _, _ = predict(made, points, [[POSITIVE, NEGATIVE]], before_NHW)
    assert masks_NMHW[0, 0, :, :30].all()
    assert not masks_NMHW[0, 0, 20, 50]


@BOTH
def test_box_and_click_together(segmenter):
    made = ready(segmenter, two_squares())
    points = [[[17, 15], [10, 8], [61, 23]]]
    labels = [[POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    masks_NMHW, _, _ = predict(made, points, labels)
    assert masks_NMHW.shape == (1, 1, 48, 72)
    assert masks_NMHW[0, 0, 15, 17]


@BOTH
def test_empty_slots_change_nothing(segmenter):
    made = ready(segmenter, two_squares())
    plain = predict(made, [[[17, 15]]], [[POSITIVE]])
    points = [[[3, 3], [17, 15], [0, 0]]]
    padded = predict(made, points, [[ABSENT, POSITIVE, NOT_A_POINT]])
    np.testing.assert_array_equal(plain[0], padded[0])
    np.testing.assert_array_equal(plain[1], padded[1])


@BOTH
def test_predictions_do_not_depend_on_the_other_objects(segmenter):
    noise_HW3 = np.random.default_rng(1).integers(0, 120, (48, 72, 3))
    made = ready(segmenter, (0.6 * two_squares() + noise_HW3).clip(0, 255).astype(np.uint8))
    points = [[[x, 20]] for x in (12, 20, 30, 40, 50, 60)]
    all_NMHW, _, _ = predict(made, points, [[POSITIVE]] * 6)
    again_NMHW, _, _ = predict(made, points[::-1], [[POSITIVE]] * 6)
    np.testing.assert_array_equal(all_NMHW, again_NMHW[::-1])


@BOTH
@pytest.mark.parametrize('point', [(0, 0), (71, 47), (71.9, 0.2), (36, 30)])
def test_any_pixel_can_be_clicked(segmenter, point):
    made = ready(segmenter, two_squares())
    masks_NMHW, _, _ = predict(made, [[point]], [[POSITIVE]])
    assert masks_NMHW[0, :, int(point[1]), int(point[0])].all()


@BOTH
def test_box_of_one_pixel_and_box_of_the_whole_image(segmenter):
    made = ready(segmenter, two_squares())
    labels = [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]
    tiny_NMHW, _, _ = predict(made, [[[20, 12], [20, 12]]], labels)
    assert (tiny_NMHW.sum((2, 3)) == 1).all()
    whole_NMHW, _, _ = predict(made, [[[0, 0], [71, 47]]], labels)
    assert whole_NMHW.any((2, 3)).all()


@BOTH
def test_prompt_without_a_start_is_an_error(segmenter):
    made = ready(segmenter, two_squares())
    with pytest.raises(SamjaxError, match='must start from a box or a positive click'):
        predict(made, [[[17, 15]]], [[NEGATIVE]])
    with pytest.raises(SamjaxError, match='must start'):
        predict(made, [[[17, 15]]], [[ABSENT]])


@pytest.mark.parametrize(
    ('segmenter', 'module', 'package'),
    [(FloodFill, 'skimage', 'scikit-image'), (GrabCut, 'cv2', 'opencv-python-headless')],
)
def test_missing_package_is_named(segmenter, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f'pip install {package}'):
        segmenter()


def test_fill_holes_closes_holes_but_not_bays():
    mask_HW = np.array(
        [
            [1, 1, 1, 0, 1, 1],
            [1, 0, 1, 0, 1, 0],
            [1, 1, 1, 0, 1, 1],
        ],
        bool,
    )
    expected = mask_HW.copy()
    expected[1, 1] = True
    np.testing.assert_array_equal(baselines._fill_holes(mask_HW), expected)


def test_border_strength_leaves_out_the_border_of_the_image():
    edge_HW = np.arange(12.0).reshape(3, 4)
    mask_HW = np.zeros((3, 4), bool)
    mask_HW[:, :2] = True  # only column 1 (values 1, 5, 9) lies on an edge inside the image
    assert baselines._border_strength(mask_HW, edge_HW) == 5.0
    assert baselines._border_strength(np.ones((3, 4), bool), edge_HW) == 0.0


def test_ellipse_in_a_box_touches_its_sides():
    segmenter = FloodFill()
    segmenter.set_image(np.zeros((12, 20, 3), np.uint8))
    box_HW, ellipse_HW = segmenter._box_and_ellipse(3, 2, 16, 7, 1.0)
    assert np.argwhere(box_HW).min(0).tolist() == np.argwhere(ellipse_HW).min(0).tolist() == [2, 3]
    assert np.argwhere(box_HW).max(0).tolist() == np.argwhere(ellipse_HW).max(0).tolist() == [7, 16]
    assert not ellipse_HW[2, 3]
    _, half_HW = segmenter._box_and_ellipse(3, 2, 16, 7, 0.5)
    rows, columns = np.argwhere(half_HW).T
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (6, 2)
