import math

import numpy as np
import pytest
from scipy import stats

from samjax.evaluation.metrics import statistics
from samjax.evaluation.metrics.statistics import Mean


def test_means_of_parts_add_up_to_the_mean_of_all():
    values = [0.25, 0.5, 1.0, 0.125]
    assert Mean.of(values[:1]) + Mean.of(values[1:]) == Mean.of(values)
    assert Mean.of(values).value == 0.46875
    assert Mean.of([]) + Mean.of(values) == Mean.of(values)


def test_mean_without_values_is_nan():
    assert math.isnan(Mean().value)


def test_correlations_by_hand():
    assert statistics.pearson([0, 1, 2], [1, 3, 5]) == pytest.approx(1)
    assert statistics.spearman([0, 1, 2], [5, 4, -9]) == pytest.approx(-1)
    assert statistics.spearman([1, 2, 3, 4], [1, 8, 27, 1000]) == pytest.approx(1)
    assert statistics.pearson([1, 2, 3, 4], [1, 8, 27, 1000]) < 0.9


def test_spearman_shares_ranks_of_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    assert statistics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


@pytest.mark.parametrize('pairs', [([], []), ([1.0], [1.0]), ([1, 1, 1], [1, 2, 3])])
def test_correlation_without_variation_is_nan(pairs):
    assert math.isnan(statistics.pearson(*pairs))
    assert math.isnan(statistics.spearman(*pairs))
