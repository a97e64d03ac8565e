"""The boundary benchmark: thinning, exact matching, counts that add up, and its figures by hand."""

import math
import struct

import numpy as np
import pytest
import scipy.io
from scipy.optimize import linear_sum_assignment
from skimage.morphology import thin

from samjax.errors import SamjaxError
from samjax.evaluation.metrics import boundaries
from samjax.evaluation.metrics.boundaries import Counts


def lines(*rows):
    return np.array([[c == '#' for c in row] for row in rows])


@pytest.mark.parametrize('seed', range(6))
def test_thinning_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    map_HW = np.kron(rng.random((9, 12)) < 0.5, np.ones((4, 3), bool)) ^ (rng.random((36, 36)) < 0.03)
    np.testing.assert_array_equal(boundaries.thin(map_HW), thin(map_HW))
    np.testing.assert_array_equal(boundaries.thin(np.asfortranarray(map_HW)), thin(map_HW))


def least_cost(predicted_HW, truth_HW, max_distance):
    """Number of pairs and cost of the least_cost matching with outliers, by a dense solver."""
    a_N2, b_N2 = np.argwhere(predicted_HW), np.argwhere(truth_HW)
    distance = np.hypot(*(a_N2[:, None] - b_N2[None]).T).T
    costs = np.full((len(a_N2) + len(b_N2),) * 2, 0.0)
    costs[: len(a_N2), : len(b_N2)] = np.where(distance <= max_distance, np.rint(100 * distance), 1e9)
    costs[: len(a_N2), len(b_N2) :] = costs[len(a_N2) :, : len(b_N2)] = math.ceil(100 * max_distance * 100) / 2
    rows, columns = linear_sum_assignment(costs)
    paired = (rows < len(a_N2)) & (columns < len(b_N2))
    return int(paired.sum()), float(costs[rows[paired], columns[paired]].sum())


@pytest.mark.parametrize('order', ['C', 'F'])
def test_matching_costs_what_the_exact_assignment_costs(order):
    """180 x 240 px, so that the max_distance is 2.25 px; maps of Matlab's are in column order."""
    rng = np.random.default_rng(0)
    max_distance = 0.0075 * np.hypot(180, 240)
    for _ in range(25):
        maps = np.zeros((2, 180, 240), bool)
        top, left = rng.integers(0, 160), rng.integers(0, 200)
        maps[:, top : top + 12, left : left + 30] = rng.random((2, 12, 30)) < rng.choice([0.05, 0.15])
        matched_HW, partner_HW = boundaries.match(maps[0], np.array(maps[1], order=order))
        pairs, _ = least_cost(*maps, max_distance)
        assert matched_HW.sum() == partner_HW.sum() == pairs
        assert not (matched_HW & ~maps[0]).any()
        assert not (partner_HW & ~maps[1]).any()


def test_nearer_pixels_are_matched():
    """Two predicted pixels, one of them on the only boundary pixel."""
    truth_HW, predicted_HW = np.zeros((180, 240), bool), np.zeros((180, 240), bool)
    truth_HW[50, 50] = predicted_HW[50, 50] = predicted_HW[50, 51] = True
    matched_HW, _ = boundaries.match(predicted_HW, truth_HW)
    assert np.argwhere(matched_HW).tolist() == [[50, 50]]
    truth_HW[50, 50], truth_HW[50, 53] = False, True  # 2 px from one, 3 from the other: max_distance is 2.25
    matched_HW, _ = boundaries.match(predicted_HW, truth_HW)
    assert np.argwhere(matched_HW).tolist() == [[50, 51]]


def test_counts_by_hand():
    """A line that both annotators drew, one of them longer; the map has it, and a spurious one that is weaker."""
    edges_HW = np.zeros((180, 240), np.float32)
    edges_HW[20, 10:30] = 0.8
    edges_HW[120, 10:20] = 0.3
    short_HW, long_HW = np.zeros((180, 240), bool), np.zeros((180, 240), bool)
    short_HW[21, 10:30] = True
    long_HW[20, 10:40] = True
    counts = boundaries.count(edges_HW, [short_HW, long_HW])
    weak, strong, none = 29, 79, 80  # indices of .30, .80, .81
    assert [int(row[weak]) for row in counts] == [40, 50, 20, 30]
    assert [int(row[strong]) for row in counts] == [40, 50, 20, 20]
    assert [int(row[none]) for row in counts] == [0, 50, 0, 0]


def test_perfect_and_empty_maps():
    truth_HW = np.zeros((60, 80), bool)
    truth_HW[30, 5:60] = True
    result = boundaries.scores([boundaries.count(truth_HW.astype(float), [truth_HW])])
    assert (result.ods.f, result.ois.f, result.ods.recall) == (1, 1, 1)
    nothing = boundaries.scores([boundaries.count(np.zeros((60, 80)), [truth_HW])])
    assert (nothing.ods.f, nothing.ap) == (0, 0)
    blank = boundaries.count(truth_HW.astype(float), [np.zeros((60, 80), bool)])
    assert (blank.truth_T == 0).all()
    assert boundaries.scores([blank]).ods.f == 0


def test_scores_by_hand():
    """Two images; one is best at a low, one at a high threshold."""
    ones = np.ones(99, int)
    low = np.arange(99) < 50
    first = Counts(np.where(low, 8, 2), 10 * ones, np.where(low, 8, 2), 10 * ones)
    second = Counts(np.where(low, 2, 6), 10 * ones, np.where(low, 2, 6), 10 * ones)
    result = boundaries.scores([first, second])
    assert result.ods.f == pytest.approx(0.5)  # (8 + 2) of 20 at thresholds up to .5
    assert result.ois.f == pytest.approx(0.7)  # (8 + 6) of 20
    assert result.curve.recall_T.tolist() == pytest.approx([0.5] * 50 + [0.4] * 49)


def test_f_is_interpolated_between_thresholds():
    ramp = np.linspace(0, 1, 99)
    curve = boundaries.PrecisionRecallCurve(ramp, 1 - ramp)
    assert curve.best().f == pytest.approx(0.5, abs=1e-4)
    assert curve.best().threshold == pytest.approx(0.5, abs=0.01)


def test_count_all_gives_the_same_in_processes():
    rng = np.random.default_rng(0)
    images = [
        (f'{n}', rng.random((40, 50)) * (rng.random((40, 50)) < 0.1), [rng.random((40, 50)) < 0.1]) for n in range(3)
    ]
    alone = list(boundaries.count_all(iter(images)))
    for (name, counts), (other, more) in zip(alone, boundaries.count_all(iter(images), workers=2), strict=True):
        assert name == other
        np.testing.assert_array_equal(np.array(counts), np.array(more))


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(SamjaxError, match='no annotator drew boundaries'):
        boundaries.count(np.zeros((4, 5)), [])
    with pytest.raises(SamjaxError, match=r'shape \(4, 5\), but the boundaries of annotator 1 have \(5, 4\)'):
        boundaries.count(np.zeros((4, 5)), [np.zeros((5, 4), bool)])
    with pytest.raises(SamjaxError, match='values outside 0 to 1'):
        boundaries.count(np.full((4, 5), 2.0), [np.zeros((4, 5), bool)])
    with pytest.raises(SamjaxError, match='no image to score'):
        boundaries.scores([])
    with pytest.raises(SamjaxError, match='none.mat cannot be read'):
        boundaries.read_ground_truth(tmp_path / 'none.mat')
    (tmp_path / 'text.mat').write_text('no ground truth')
    with pytest.raises(SamjaxError, match='text.mat holds no boundaries of annotators'):
        boundaries.read_ground_truth(tmp_path / 'text.mat')
    scipy.io.savemat(tmp_path / 'other.mat', {'x': 1})
    with pytest.raises(SamjaxError, match='other.mat holds no boundaries'):
        boundaries.read_ground_truth(tmp_path / 'other.mat')


def test_damaged_file_does_not_end_the_process(tmp_path):
    """An element of type 0, where scipy reads address 0; and a compressed file with a wrong checksum."""
    cells = np.empty((1, 1), object)
    cells[0, 0] = {'Boundaries': np.eye(4, 5, dtype=np.uint16)}
    for is_compressed in (False, True):
        scipy.io.savemat(tmp_path / 'x.mat', {'groundTruth': cells}, do_compression=is_compressed)
        [truth_HW] = boundaries.read_ground_truth(tmp_path / 'x.mat')
        np.testing.assert_array_equal(truth_HW, np.eye(4, 5, dtype=bool))
        data = (tmp_path / 'x.mat').read_bytes()
        element = struct.pack('<II', 4, 40)  # uint16, 40 bytes
        wrong = data[:-1] + bytes([data[-1] ^ 1]) if is_compressed else data.replace(element, bytes(8))
        assert wrong != data
        (tmp_path / 'x.mat').write_bytes(wrong)
        with pytest.raises(SamjaxError, match='x.mat holds no boundaries of annotators'):
            boundaries.read_ground_truth(tmp_path / 'x.mat')
