"""The boundary benchmark on maps of 6 x 8 px by hand, the cost of matchings, AP and R50, and files that are broken."""

import math
import os

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.optimize import linear_sum_assignment

from samjax.errors import SamjaxError
from samjax.evaluation.metrics import boundaries
from samjax.evaluation.metrics.boundaries import (
    Counts,
    PrecisionRecallCurve,
    count,
    count_all,
    match,
    read_ground_truth,
    scores,
    thin,
)
from samjax.evaluation.report import boundary_plot


def drawn(text):
    return np.array([[pixel == '#' for pixel in row] for row in text.split()])


LINE = drawn("""
........
.######.
........
........
........
........
""")
BELOW = np.roll(LINE, 1, axis=0)
FRAME = drawn("""
........
.######.
.#....#.
.#....#.
.######.
........
""")


def counted(predicted_HW, *truths):
    """`Counts` of a bool map; they are the same at each threshold."""
    rows = np.unique(np.array(count(predicted_HW.astype(float), truths)), axis=1)
    assert rows.shape == (4, 1)
    return tuple(rows[:, 0].tolist())


@pytest.fixture
def max_distance_of_1(monkeypatch):
    """Pixels of 6 x 8 maps match across 1.2 px: to the four sides, not diagonally."""
    monkeypatch.setattr(boundaries, 'MAX_DISTANCE', 0.12)


# ---- counting --------------------------------------------------------------------------------------


def test_same_pixels_match_at_any_reach():
    assert counted(LINE, LINE) == (6, 6, 6, 6)
    assert counted(LINE, BELOW) == (0, 6, 0, 6)  # 0.0075 of the diagonal is less than a pixel here


@pytest.mark.parametrize(
    ('shift', 'axis', 'expected'), [(1, 0, (6, 6, 6, 6)), (2, 0, (0, 6, 0, 6)), (1, 1, (6, 6, 6, 6))]
)
def test_shifted_line(max_distance_of_1, shift, axis, expected):
    """Along the line each pixel goes to the next, and none is left over."""
    assert counted(LINE, np.roll(LINE, shift, axis)) == expected


def test_spurious_pixel_costs_precision_alone(max_distance_of_1):
    predicted_HW = LINE.copy()
    predicted_HW[5, 7] = True
    assert counted(predicted_HW, LINE) == (6, 6, 6, 7)


def test_precision_is_of_the_union_over_annotators(max_distance_of_1):
    """One drew columns 1 and 2, the other 2 to 4."""
    left_HW, right_HW = LINE.copy(), LINE.copy()
    left_HW[:, 3:] = right_HW[:, 5:] = right_HW[:, :2] = False
    assert counted(LINE, left_HW, right_HW) == (2 + 3, 2 + 3, 4, 6)


def test_a_boundary_pixel_serves_one_answer(max_distance_of_1):
    predicted_HW, truth_HW = np.zeros((2, 6, 8), bool)
    predicted_HW[0, 1:4] = predicted_HW[2, 1:4] = truth_HW[1, 1:4] = True
    assert counted(predicted_HW, truth_HW) == (3, 3, 3, 6)


def test_nothing_predicted_and_nothing_drawn():
    nothing_HW = np.zeros((6, 8), bool)
    assert counted(nothing_HW, FRAME, LINE) == (0, 16 + 6, 0, 0)
    assert counted(LINE, nothing_HW) == (0, 0, 0, 6)
    assert counted(nothing_HW, nothing_HW) == (0, 0, 0, 0)


def test_all_pixels_are_thinned_before_they_count():
    everything_HW = np.ones((6, 8), bool)
    left = int(thin(everything_HW).sum())
    assert 0 < left <= 8
    assert counted(everything_HW, everything_HW) == (left, 48, left, left)


def test_each_threshold_has_its_own_map():
    """Columns 1 to 6 have 0.1, 0.2, ..., 0.6; thresholds belong to what they keep."""
    counts = count(LINE * np.arange(8) / 10, [LINE])
    expected = [np.sum(np.arange(1, 7) / 10 >= k / 100) for k in range(1, 100)]
    for counted_T in (counts.matched_truth_T, counts.matched_predicted_T, counts.predicted_T):
        np.testing.assert_array_equal(counted_T, expected)
    np.testing.assert_array_equal(counts.truth_T, 6)


@pytest.mark.parametrize('value', [255.0, -0.1, math.nan])
def test_edges_out_of_range(value):
    with pytest.raises(SamjaxError, match='outside 0 to 1'):
        count(np.full((6, 8), value), [LINE])


# ---- matching and thinning -------------------------------------------------------------------------


def least_cost(predicted_HW, truth_HW, max_distance):
    """Pairs and their total distance in hundredths, by a dense solver that has a node for each pixel left over."""
    a_N2, b_N2 = np.argwhere(predicted_HW), np.argwhere(truth_HW)
    distance = np.hypot(*(a_N2[:, None] - b_N2[None]).transpose(2, 0, 1))
    costs = np.full((len(a_N2), len(b_N2) + len(a_N2)), math.ceil(100 * max_distance * 100), float)
    costs[:, : len(b_N2)] = np.where(distance <= max_distance, np.rint(100 * distance), 1e9)
    rows, columns = linear_sum_assignment(costs)
    paired = columns < len(b_N2)
    return int(paired.sum()), float(costs[rows, columns][paired].sum())


@pytest.mark.parametrize('seed', range(40))
def test_matched_pixels_cost_no_more_than_the_cheapest(seed, monkeypatch):
    """The pixels that were matched, and only they, are matched again: as many, and at the same total distance."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(5, 25, 2))
    monkeypatch.setattr(boundaries, 'MAX_DISTANCE', rng.choice([1.0, 1.5, 2.3, 4.4]) / math.hypot(*shape))
    monkeypatch.setattr(boundaries, 'PIXELS_PER_CALL', rng.choice([1, 20, 200]))
    max_distance = boundaries.MAX_DISTANCE * math.hypot(*shape)
    predicted_HW, truth_HW = (rng.random(shape) < rng.uniform(0.02, 0.4) for _ in range(2))
    matched_HW, partner_HW = match(predicted_HW, truth_HW)
    pairs, total = least_cost(predicted_HW, truth_HW, max_distance)
    assert matched_HW.sum() == partner_HW.sum() == pairs
    assert least_cost(matched_HW, partner_HW, max_distance) == (pairs, total)


def test_a_distance_of_exactly_the_reach_counts(monkeypatch):
    """5 px, where the diagonal is 50."""
    predicted_HW, truth_HW = np.zeros((2, 30, 40), bool)
    predicted_HW[10, 10] = truth_HW[13, 14] = True
    for fraction, pairs in ((0.1, 1), (0.0999, 0)):
        monkeypatch.setattr(boundaries, 'MAX_DISTANCE', fraction)
        assert match(predicted_HW, truth_HW)[0].sum() == pairs


def test_more_pairs_come_before_nearer_ones(max_distance_of_1):
    """A pixel in both maps gives way if two others get partners by that."""
    predicted_HW, truth_HW = np.zeros((2, 6, 8), bool)
    predicted_HW[2, 3:5] = truth_HW[2, 2:4] = True
    assert [matched_HW.sum() for matched_HW in match(predicted_HW, truth_HW)] == [2, 2]


def test_thin_by_hand():
    thick_HW = drawn('........ .######. .######. .######. ........')
    np.testing.assert_array_equal(thin(thick_HW), drawn('........ ........ ..####.. ........ ........'))
    np.testing.assert_array_equal(thin(LINE), LINE)


# ---- scores ----------------------------------------------------------------------------------------


def test_scores_of_two_images_by_hand():
    """Up to .50 P is 12/30 and R 12/20; beyond, P is 8/10 and R 8/20; between .50 and .51 both are linear."""
    low = np.arange(1, 100) <= 50
    ten = np.full(99, 10)
    first = Counts(np.where(low, 8, 2), ten, np.where(low, 8, 2), np.where(low, 10, 4))
    second = Counts(np.where(low, 4, 6), ten, np.where(low, 4, 6), np.where(low, 20, 6))
    result = scores([first, second])
    d = np.linspace(0, 1, 100)
    f = 2 * (0.4 + 0.4 * d) * (0.6 - 0.2 * d) / (1 + 0.2 * d)
    assert result.ods == pytest.approx(
        (f.max(), 0.4 + 0.4 * d[f.argmax()], 0.6 - 0.2 * d[f.argmax()], 0.5 + 0.01 * d[f.argmax()])
    )
    # The first at a low, the second at a high threshold: 14 of 16 predicted and 14 of 20 true pixels match.
    assert result.ois[:3] == pytest.approx((2 * 14 / 36, 14 / 16, 14 / 20))
    # From (R, P) = (.4, .8) to (.6, .4): at .40 and .60 rounding may put the recall outside.
    assert result.ap == pytest.approx(21 * 0.6 / 100, abs=0.0081)
    assert result.r50 == pytest.approx(0.55)
    both = Counts(*np.add(first, second))
    assert both.matched_truth_T.dtype.kind == 'i'
    assert scores([both]).ods == result.ods


def test_ap_takes_precision_at_each_hundredth_of_recall():
    """Recall k/128 with precision 1 - k/128 from 1/128 to 99/128; nothing beyond."""
    k = np.arange(99, 0, -1)
    of = np.full(99, 128)
    reached = np.arange(1, 78) / 100  # .01, ..., .77
    assert scores([Counts(k, of, 128 - k, of)]).ap == pytest.approx(np.sum(1 - reached) / 100)


def test_binary_map():
    result = scores([Counts(*(np.full(99, number) for number in (6, 8, 6, 12)))])
    assert result.ods[:3] == pytest.approx((0.6, 0.5, 0.75))
    assert result.ois[:3] == pytest.approx((0.6, 0.5, 0.75))
    assert (result.ap, result.r50) == (0, 0.75)


def test_r50_of_curves_that_do_not_cross_half():
    k, hundred = np.arange(99), np.full(99, 100)
    assert scores([Counts(99 - k, hundred, 60 + k // 3, hundred)]).r50 == 0.99  # where precision is lowest
    assert math.isnan(scores([Counts(99 - k, hundred, 30 + k // 10, hundred)]).r50)


# ---- over images, files and the figure -------------------------------------------------------------


@pytest.mark.parametrize('workers', [1, 2])
def test_error_names_the_image(workers):
    images = [('good', np.zeros((6, 8)), [LINE]), ('a/b.jpg', np.zeros((3, 3)), [])]
    with pytest.raises(SamjaxError, match='a/b.jpg: no annotator'):
        list(count_all(images, workers))


class Deadly(np.ndarray):
    """An array that ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_killed_process():
    with pytest.raises(SamjaxError, match='killed'):
        list(count_all([('x', np.zeros((2, 2)).view(Deadly), [])], workers=2))


def write_truth(path, maps):
    cells = np.empty((1, len(maps)), object)
    for k, map_HW in enumerate(maps):
        cells[0, k] = {'Segmentation': map_HW.astype(np.uint16) + 1, 'Boundaries': map_HW.astype(np.uint8)}
    scipy.io.savemat(path, {'groundTruth': cells})


@pytest.mark.parametrize('people', [1, 3])
def test_ground_truth_is_read(tmp_path, people):
    maps = [LINE, BELOW, FRAME][:people]
    write_truth(tmp_path / 'a.mat', maps)
    read = read_ground_truth(tmp_path / 'a.mat')
    assert all(map_HW.dtype == bool for map_HW in read)
    np.testing.assert_array_equal(read, maps)


def empty(path):
    path.write_bytes(b'')


def cut_short(path):
    write_truth(path, [LINE, FRAME])
    path.write_bytes(path.read_bytes()[:300])


def no_cells(path):
    scipy.io.savemat(path, {'groundTruth': np.zeros(3)})


def nobody(path):
    write_truth(path, [])


@pytest.mark.parametrize('spoil', [empty, cut_short, no_cells, nobody])
def test_broken_ground_truth(tmp_path, spoil):
    spoil(tmp_path / 'a.mat')
    with pytest.raises(SamjaxError, match=r'a\.mat.*BSDS500') as caught:
        read_ground_truth(tmp_path / 'a.mat')
    assert '\n' not in str(caught.value)


def test_figure_of_curves_and_points(tmp_path):
    falling = PrecisionRecallCurve(np.linspace(0.3, 0.95, 99), np.linspace(0.9, 0.0, 99))
    point = PrecisionRecallCurve(np.full(99, 0.8), np.full(99, 0.7))
    curves = {f'a{n}': falling for n in range(20)} | {'people': point}
    boundary_plot.draw_precision_recall(tmp_path / 'many.png', curves)
    boundary_plot.draw_precision_recall(tmp_path / 'none.png', {})
    with Image.open(tmp_path / 'many.png') as many, Image.open(tmp_path / 'none.png') as none:
        assert many.size == none.size == (780, 780)
        assert np.any(np.asarray(many) != np.asarray(none))
