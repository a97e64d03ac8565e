"""Crops and point grids, against segment-anything's and by hand."""

import numpy as np
import pytest

from samjax.errors import SamjaxError
from samjax.inference.automatic.crops import build_point_grids, check_point_grids, crop_boxes, point_grid
from samjax.parity import meta

amg = meta.package().utils.amg


def test_crops_worked_example():
    """30 x 41 px with a quarter of overlap: 7 px in layer 1, 3 in layer 2."""
    crops = crop_boxes(30, 41, 2, 0.25)
    # (41 + 7) / 2 = 24 columns, (30 + 7) / 2 = 18.5, hence 19 rows
    assert [tuple(crop) for crop in crops[:5]] == [
        (0, 0, 0, 41, 30),
        (1, 0, 0, 24, 19),
        (1, 0, 12, 24, 30),
        (1, 17, 0, 41, 19),
        (1, 17, 12, 41, 30),
    ]
    # (41 + 3 * 3) / 4 = 12.5, hence 13 columns each 10 further on; (30 + 9) / 4 = 9.75, hence 10 rows each 7 on
    assert [(crop.y0, crop.y1) for crop in crops[5:9]] == [(0, 10), (7, 17), (14, 24), (21, 30)]
    assert [(crop.x0, crop.x1) for crop in crops[5::4]] == [(0, 13), (10, 23), (20, 33), (30, 41)]
    assert len(crops) == 1 + 4 + 16


def test_crops_of_tiny_images_are_not_empty():
    assert crop_boxes(1, 1, 1, 0.3) == [(0, 0, 0, 1, 1), (1, 0, 0, 1, 1)]
    assert crop_boxes(1, 7, 2, 0.3) == [
        (0, 0, 0, 7, 1),
        (1, 0, 0, 4, 1),
        (1, 4, 0, 7, 1),
        (2, 0, 0, 2, 1),
        (2, 2, 0, 4, 1),
        (2, 4, 0, 6, 1),
        (2, 6, 0, 7, 1),
    ]
    assert len(crop_boxes(3, 3, 2, 0.3)) == 1 + 4 + 9


@pytest.mark.parametrize('layers', range(4))
def test_crops_are_the_originals(layers):
    rng = np.random.default_rng(layers)
    for n in range(200):
        height, width = rng.integers(1, 20 if n < 50 else 3000, 2).tolist()
        ratio = rng.choice([512 / 1500, 0.0, rng.uniform(0, 0.9)])
        boxes, layer_of = amg.generate_crop_boxes((height, width), layers, ratio)
        expected = [
            (layer, *box) for layer, box in zip(layer_of, boxes, strict=True) if box[0] < box[2] and box[1] < box[3]
        ]
        actual = crop_boxes(height, width, layers, ratio)
        assert actual == expected
        assert {type(number) for crop in actual for number in crop} == {int}


def test_point_grid_worked_example():
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


@pytest.mark.parametrize('downscale', [1, 2, 3])
def test_point_grids_are_the_originals(downscale):
    for side in (8, 11, 32, 64, 100):
        actual = build_point_grids(side, 1, downscale)
        expected = amg.build_all_layer_point_grids(side, 1, downscale)
        for grid, reference in zip(actual, expected, strict=True):
            assert grid.dtype == np.float64
            assert grid.tolist() == reference.tolist()
    assert [len(grid) for grid in build_point_grids(9, 3, 2)] == [81, 16, 4, 1]


def test_a_layer_without_points_is_an_error():
    with pytest.raises(SamjaxError, match='points_per_side 4 with a downscale factor of 2 leaves no point in layer 3'):
        build_point_grids(4, 3, 2)
    with pytest.raises(SamjaxError, match='points_per_side 0 .* layer 0 of 0 layers'):
        build_point_grids(0, 0, 1)


def test_point_grids_of_any_form_are_arrays():
    expected = [[[0.5, 0.25]], [[0, 1], [1, 0]]]
    forms = expected, [tuple(map(tuple, grid)) for grid in expected], [np.array(grid, np.float32) for grid in expected]
    for form in (*forms, iter(forms[2])):
        grids = check_point_grids(form, 1)
        assert [grid.tolist() for grid in grids] == expected
        assert {grid.dtype for grid in grids} == {np.dtype(np.float64)}
    assert check_point_grids(np.full((1, 3, 2), 0.5), 0)[0].tolist() == [[0.5, 0.5]] * 3


@pytest.mark.parametrize(
    ('grids', 'message'),
    [
        ([[]], '^point grid 0 is empty: give each layer at least one point, or use fewer layers$'),
        ([[[0.5, 0.5]], np.zeros((0, 2))], '^point grid 1 is empty'),
        ([], '^there are 0 point grids for the image and 1 layers of crops: give 2$'),
        ([[[0.5, 0.5]]], '^there are 1 point grids for the image and 1 layers of crops: give 2$'),
        ([[[0.5, 0.5]]] * 3, '^there are 3 point grids'),
        # One grid without a list, of five points and of as many points as there are layers.
        (np.full((5, 2), 0.5), r'^point grid 0 has shape \(2,\): give a list with a grid \(N, 2\), x and y, for each'),
        (np.full((2, 2), 0.5), r'^point grid 0 has shape \(2,\)'),
        ([[[0.5, 0.5, 1]]], r'^point grid 0 has shape \(1, 3\)'),
        ([[[[0.5, 0.5]]]], r'^point grid 0 has shape \(1, 1, 2\)'),
        ([0.5, 0.5], r'^point grid 0 has shape \(\)'),
        (
            [[[0.5, 0.5], [30, 20]]],
            '^point grid 0 has the point 30,20: give fractions of the width and',
        ),
        ([[[0.5, 0.5]], [[0.5, -0.01]]], '^point grid 1 has the point 0.5,-0.01'),
        ([[[0.5, np.nan]]], '^point grid 0 has the point 0.5,nan'),
        ([[[0.5, 0.5], [0.5]]], '^point_grids cannot be made numpy arrays, .*: give a list with a grid'),
        ([[['a', 'b']]], '^point_grids cannot be made numpy arrays, could not convert'),
        (3, '^point_grids cannot be made numpy arrays, .*int.* not iterable: give'),
    ],
)
def test_wrong_point_grids_are_one_sentence(grids, message):
    with pytest.raises(SamjaxError, match=message):
        check_point_grids(grids, 1)
