"""Calibration: probabilities that are as often right as they say."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

FITTED = 10_000  # images that are enough for one number
TEMPERATURES = (0.05, 20.0)  # beyond these a model says next to nothing, or everything


def fitted_temperature(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """The number to divide logits by so that probabilities fit best (Guo et al., arXiv:1706.04599, section 4.2).

    Args:
        logits: of images that the model was not trained on, shape (N, classes).
        labels: int64, of shape (N,).

    Returns:
        1 where nothing can be fitted: without a mistake, the best fit would be to be sure of everything; and where the
        best lies outside of `TEMPERATURES`, as with a few images that are mostly wrong.
    """
    stride = -(-len(labels) // FITTED)
    targets, logits = torch.from_numpy(labels)[::stride], logits[::stride].double()
    if not logits.isfinite().all() or bool((logits.argmax(dim=1) == targets).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    low, high = np.log(TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded").x)
    return float(np.exp(found)) if low + 0.01 < found < high - 0.01 else 1.0
