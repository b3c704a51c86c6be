"""Calibration of probabilities by temperature scaling."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

MOST_IMAGES = 10_000  # enough to fit a single number
TEMPERATURES = (0.05, 20.0)  # beyond them, probabilities are almost one-hot, or almost uniform


def fit_temperature(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Fit the temperature of temperature scaling (Guo et al., arXiv:1706.04599, section 4.2).

    It minimises the cross-entropy of the logits divided by it, on at most `MOST_IMAGES` evenly spaced images.

    Args:
        logits: the logits of images that the model was not trained on, shape (N, classes).
        labels: their int64 labels, shape (N,).

    Returns:
        The temperature, or 1.0 if none can be fitted. That is so if a logit is not finite, or if no image is
        misclassified, as the best temperature would then be 0. It is also so if the minimum is outside `TEMPERATURES`,
        as with few images that are mostly misclassified.
    """
    stride = -(-len(labels) // MOST_IMAGES)
    targets, logits = torch.from_numpy(labels)[::stride], logits[::stride].double()
    if not logits.isfinite().all() or bool((logits.argmax(dim=1) == targets).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    low, high = np.log(TEMPERATURES)
    best = float(minimize_scalar(loss, bounds=(low, high), method="bounded").x)
    return float(np.exp(best)) if low + 0.01 < best < high - 0.01 else 1.0
