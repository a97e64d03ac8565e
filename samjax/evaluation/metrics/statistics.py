"""Scores of masks, and means that add up over images, processes and runs."""

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
        """The mean, or NaN of nothing."""
        return self.total / self.count if self.count else math.nan


def mask_iou(a_HW: np.ndarray, b_HW: np.ndarray) -> np.ndarray:
    """Intersection over union of bool masks in pixels, over the last two axes; leading axes broadcast.

    Two empty masks agree: 1.
    """
    both = mask_area(a_HW & b_HW)
    either = mask_area(a_HW) + mask_area(b_HW) - both
    return np.where(either, both / np.maximum(either, 1), 1.0)


def mask_area(mask_HW: np.ndarray) -> np.ndarray:
    """Pixels of bool masks, over the last two axes."""
    lead, pixels = mask_HW.shape[:-2], mask_HW.shape[-2] * mask_HW.shape[-1]
    # Counting one mask at a time is many times faster than a sum over axes.
    return np.array([np.count_nonzero(m) for m in mask_HW.reshape(-1, pixels)], int).reshape(lead)


def pearson(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Linear correlation, or NaN for fewer than two pairs or where one side never changes."""
    a_N, b_N = np.asarray(a_N, np.float64), np.asarray(b_N, np.float64)
    if a_N.size < 2 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return math.nan
    return float(np.corrcoef(a_N, b_N)[0, 1])


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Correlation of ranks, ties sharing their mean rank; NaN as in `pearson`."""
    return pearson(stats.rankdata(a_N), stats.rankdata(b_N))
