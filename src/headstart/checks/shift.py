"""Train and test told apart by their features: are they images of the same kind?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.checks.findings import Finding
from headstart.checks.table import SPLITS, ImageTable

PERMUTATIONS = 199
FOLDS = 5
MOST_IMAGES = 4000  # that are compared; more make no difference to what is worth knowing
FEWEST_IMAGES = 20  # on either side
DIMENSIONS = 32  # principal components that are compared
RIDGE = 1.0  # added to the variance of a component that is scaled to 1
# A smaller difference is of no consequence, or may be chance. Of 450 random splits of three sets 5 are beyond both,
# and of 27 test sets of transformed images 20: all but mirrored and some brighter, bordered or cropped ones
# (benchmarks/check_limits.py).
LEAST_AUC, LARGEST_P = 0.6, 0.01


def shift_findings(table: ImageTable, features: Tensor, units: NDArray[np.int64]) -> list[Finding]:
    """Return a finding if train and test can be told apart by the features of their images.

    Args:
        table: the images.
        features: a few features of each, such as principal components, shape (images, dimensions).
        units: the images to compare, one of each group of images that belong together, int64.
    """
    rng, test = np.random.default_rng(0), SPLITS.index("test")
    sides = table.splits[units]
    units = units[(sides == SPLITS.index("train")) | (sides == test)]
    units = rng.permutation(units)[:MOST_IMAGES]
    in_split = table.splits[units] == test
    if min(in_split.sum(), (~in_split).sum()) < FEWEST_IMAGES:
        return []
    auc, p = told_apart(features[torch.from_numpy(units)], in_split, table.samples.labels[units], rng)
    if auc < LEAST_AUC or p > LARGEST_P:
        return []
    detail = f"a classifier tells images of train from those of test: AUC {auc:.2f} (0.5 is chance), p = {p:.3f}"
    return [Finding("shift", "test", score=auc, detail=detail)]


def told_apart(
    features: Tensor, sides: NDArray[np.bool_], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    """Return the cross-validated AUC of a linear classifier between two sets of images, and its permutation p.

    Images are permuted within each class, so that other class frequencies are no difference. The folds do not depend on
    the sides: then p is exact (Phipson & Smyth, 2010). Ridge regression on the side is linear in it, so that all
    permutations share one inverse a fold.

    Args:
        features: shape (images, dimensions).
        sides: which of two sets each image is in, shape (images,).
        labels: the class of each image, shape (images,).
        rng: draws the folds and the permutations.
    """
    permuted = np.stack([sides, *(_permuted(sides, labels, rng) for _ in range(PERMUTATIONS))], axis=1)
    columns = torch.from_numpy(permuted).double()
    folds = torch.from_numpy(rng.permutation(len(sides)) % FOLDS)
    values = features.double() - features.double().mean(dim=0)
    values /= values.std(dim=0).clamp(min=1e-12)
    answers = torch.empty_like(columns)
    for fold in range(FOLDS):
        others, own = values[folds != fold], folds == fold
        target = columns[folds != fold]
        target = target - target.mean(dim=0)
        ridge = RIDGE * len(others) ** 0.5 * torch.eye(values.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(others.T @ others + ridge, others.T @ target)
        answers[own] = values[own] @ weights
    aucs = _aucs(answers, columns)
    p = (1 + int((aucs[1:] >= aucs[0]).sum())) / (1 + PERMUTATIONS)
    return float(aucs[0]), p


def _permuted(sides: NDArray[np.bool_], labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the sides, permuted among the images of each class."""
    permuted = sides.copy()
    for label in np.unique(labels):
        of_class = labels == label
        permuted[of_class] = rng.permutation(sides[of_class])
    return permuted


def _aucs(answers: Tensor, columns: Tensor) -> Tensor:
    """Return the area under the ROC curve of each column of answers for its column of sides, 0 or 1."""
    ranks = answers.argsort(dim=0).argsort(dim=0).double() + 1
    positives = columns.sum(dim=0)
    above = (ranks * columns).sum(dim=0) - positives * (positives + 1) / 2
    return above / (positives * (len(columns) - positives))
