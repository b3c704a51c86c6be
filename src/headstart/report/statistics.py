"""How certain figures are: intervals, calibration, and the comparison of two models on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15  # of confidence, as in Guo et al., arXiv:1706.04599


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson, 1927): good for few images and near 0 and 1, too.

    Args:
        correct: how many images have the right answer.
        images: of how many; at least 1.
    """
    interval = binomtest(correct, images).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: NDArray[np.float32]) -> tuple[float, float]:
    """The 95 % interval of a mean, by the normal distribution.

    Args:
        values: at least one, of images that were drawn independently.
    """
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return mean - 1.96 * error, mean + 1.96 * error


def calibration_error(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Expected calibration error: how far confidence is from accuracy, on average over images; in [0, 1].

    Args:
        logits: of shape (N, classes).
        labels: int64, of shape (N,).
    """
    probabilities, targets = logits.softmax(dim=1), torch.from_numpy(labels)
    return float(multiclass_calibration_error(probabilities, targets, num_classes=logits.shape[1], n_bins=BINS))


class Comparison(NamedTuple):
    """Two models on the same images.

    Attributes:
        only_first: images that only the first one has right.
        only_second: likewise.
        p_value: how often two equally good models differ as much; McNemar's test with the mid-p value.
    """

    only_first: int
    only_second: int
    p_value: float


def compare(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Comparison:
    """McNemar's test, with the mid-p value (Fagerland et al., 2013, doi:10.1186/1471-2288-13-91).

    Args:
        first: whether the first model has each image right.
        second: likewise, of the same images in the same order.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    fewer, differing = min(only_first, only_second), only_first + only_second
    if only_first == only_second:
        p_value = 1.0
    else:
        p_value = float(2 * binom.cdf(fewer, differing, 0.5) - binom.pmf(fewer, differing, 0.5))
    return Comparison(only_first, only_second, p_value)
