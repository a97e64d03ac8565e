"""Means that can be added over images, processes and runs, and correlations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean kept as sum and count: `Mean.of(a) + Mean.of(b) == Mean.of(a and b together)`."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values) -> Mean:
        values = np.asarray(values, np.float64)
        return cls(float(values.sum()), values.size)

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean, or NaN without values."""
        return self.total / self.count if self.count else math.nan


def pearson(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Linear correlation, or NaN for fewer than two pairs or if all values of a side are equal."""
    a_N, b_N = np.asarray(a_N, np.float64), np.asarray(b_N, np.float64)
    if a_N.size < 2 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return math.nan
    return float(np.corrcoef(a_N, b_N)[0, 1])


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Correlation of ranks, ties having their mean rank; NaN as in `pearson`."""
    return pearson(stats.rankdata(a_N), stats.rankdata(b_N))
