"""Confidence intervals, calibration error, and McNemar's test for two models on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

FRACTIONS = ("accuracy", "top5_accuracy")  # fractions of all images, which have a Wilson interval
BINS = 15  # bins of confidence, as in Guo et al., 2017, arXiv:1706.04599


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Compute the 95 % confidence interval of an accuracy (Wilson, 1927).

    It is accurate for few images and for accuracies near 0 and 1, too.

    Args:
        correct: number of correctly classified images.
        images: number of images, at least 1.

    Returns:
        The lower and the upper bound, in [0, 1].
    """
    interval = binomtest(correct, images).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: NDArray[np.float32]) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a mean by the normal approximation.

    Args:
        values: one or more values, of independently drawn images. A single value gives an interval of width 0.

    Returns:
        The lower and the upper bound.
    """
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return mean - 1.96 * error, mean + 1.96 * error


def calibration_error(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Compute the expected calibration error with `BINS` bins.

    It is the mean absolute difference between confidence and accuracy, weighted by images, in [0, 1].

    Args:
        logits: shape (N, classes).
        labels: int64, shape (N,).
    """
    probabilities, targets = logits.softmax(dim=1), torch.from_numpy(labels)
    return float(multiclass_calibration_error(probabilities, targets, num_classes=logits.shape[1], n_bins=BINS))


class Comparison(NamedTuple):
    """The result of McNemar's test for two models on the same images.

    Attributes:
        only_first: number of images that only the first model classifies correctly.
        only_second: number of images that only the second model classifies correctly.
        p_value: mid-p value: how probable such a difference or a larger one is between equally good models.
    """

    only_first: int
    only_second: int
    p_value: float


def compare(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Comparison:
    """Compare two models by McNemar's test with the mid-p value (Fagerland et al., 2013, doi:10.1186/1471-2288-13-91).

    Args:
        first: for each image, whether the first model classifies it correctly.
        second: the same for the second model, with the images in the same order.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    fewer, differing = min(only_first, only_second), only_first + only_second
    if only_first == only_second:
        p_value = 1.0
    else:
        p_value = float(2 * binom.cdf(fewer, differing, 0.5) - binom.pmf(fewer, differing, 0.5))
    return Comparison(only_first, only_second, p_value)
