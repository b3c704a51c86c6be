"""Statistics of a few numbers, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAD_SCALE = 1.4826  # the standard deviation of Gaussian values whose median absolute deviation is 1


def robust_deviation(values: NDArray[np.float64]) -> float:
    """Compute the median absolute deviation, scaled to the standard deviation of Gaussian values (Hampel, 1974)."""
    return MAD_SCALE * float(np.median(np.abs(values - np.median(values))))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % confidence interval of the mean of two or more values by Student's t (1908).

    Returns:
        The lower and the upper bound; NaN if a value is.
    """
    from scipy import stats  # imported late: it takes a second

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    margin = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - margin, mean + margin
