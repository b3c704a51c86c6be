"""Choice of the weight decay of a linear head by cross-validation, along a path from strong to weak."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from headstart.training.fitted_head.lbfgs import LBFGS
from headstart.training.fitted_head.objective import Loss, Preconditioner, full_pass, regularized
from headstart.training.fitted_head.rows import Spectrum, TrainingRows
from headstart.utils.errors import ConfigError

# Precisions (inverse variances) of a Gaussian prior of the weights on standardised features, which scikit-learn's
# LogisticRegression calls 1 / C. Divided by the number of rows they are weight decays of the mean loss.
PRECISIONS = tuple(10.0 ** (exponent / 2) for exponent in range(6, -7, -1))
MOST_FOLDS = 5  # Breiman & Spector (1992) find five folds as good as more
RISES = 2  # values in succession with a higher loss than the best, after which weaker ones are not tried
TOLERANCE = 1e-6  # of the mean loss; far below the standard error of any cross-validated loss
MOST_PASSES = 200  # for one value of the path


@dataclass(frozen=True)
class PathPoint:
    """The folds' heads for one precision.

    Attributes:
        precision: the precision of the prior.
        loss: the mean out-of-fold log loss.
        error: its standard error.
        by_fold: the sum of the log losses of each fold's rows, shape (folds,).
        heads: the head of each fold, shape (folds, width + 1, classes).
        passes: passes over the rows that it took.
    """

    precision: float
    loss: float
    error: float
    by_fold: Tensor
    heads: Tensor
    passes: int


def inner_folds(labels: NDArray[np.int64], groups: Sequence[str] | None) -> NDArray[np.int64]:
    """Assign images to at most `MOST_FOLDS` folds at random, those of each class evenly and those of a group together.

    The seed is fixed: a fitted head does not depend on the seed of the run. Unlike scikit-learn's `StratifiedKFold`
    this accepts classes with fewer images than there are folds.

    Returns:
        The fold of each image, int64, shape (images,).

    Raises:
        ConfigError: there are not two folds; see `number_of_folds`.
    """
    count = number_of_folds(labels, groups)
    if count < 2:
        raise ConfigError(
            "optimizer.weight_decay=auto: it is chosen by cross-validation, and all training images are of one group, "
            "or each is the only one of its class. Give a number, such as optimizer.weight_decay=0.01."
        )
    folds = np.empty(len(labels), dtype=np.int64)
    if groups is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            for fold, (_, held_out) in enumerate(splitter.split(labels, labels, list(groups))):
                folds[held_out] = fold
        return folds
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds[by_class] = np.arange(len(labels)) % count
    return folds


def number_of_folds(labels: NDArray[np.int64], groups: Sequence[str] | None) -> int:
    """Return the number of folds for `inner_folds`: at most `MOST_FOLDS`; below 2 if nothing can be held out.

    With groups, there are at most as many as groups, and as images of the largest class, for scikit-learn.
    """
    if groups is None:
        return min(MOST_FOLDS, len(labels))
    return min(MOST_FOLDS, len(set(groups)), int(np.bincount(labels).max()))


def weight_decay_path(
    rows: TrainingRows,
    spectrum: Spectrum,
    loss: Loss,
    folds: Tensor,
    advance: Callable[[int], None] = lambda _: None,
) -> list[PathPoint]:
    """Fit a head for each fold and each precision, from the strongest to the weakest that may be the best.

    Args:
        rows: the training rows.
        spectrum: their spectrum.
        loss: the loss of a row.
        folds: the fold of each row, shape (rows,), on the device of the rows.
        advance: called with the number of rows after each precision.
    """
    weights = fold_weights(rows, folds)
    total = loss.class_weights[rows.labels] @ weights
    heads = weights.new_zeros(weights.shape[1], rows.width + 1, len(loss.class_weights))
    points: list[PathPoint] = []
    best = 0
    for precision in PRECISIONS:
        heads, passes = solve(rows, spectrum, loss, heads, precision / total, weights, total)
        losses = F.cross_entropy(out_of_fold_logits(rows, heads, folds), rows.labels, reduction="none")
        error = float(losses.std()) / len(losses) ** 0.5
        by_fold = losses @ (1 - weights)  # a row counts in its own fold
        points.append(PathPoint(precision, float(losses.mean()), error, by_fold, heads, passes))
        advance(len(rows))
        if points[-1].loss < points[best].loss:
            best = len(points) - 1
        if len(points) - 1 - best >= RISES:
            break
    return points


def fit_folds(rows: TrainingRows, spectrum: Spectrum, loss: Loss, folds: Tensor, weight_decay: float) -> Tensor:
    """Fit a head for each fold with one weight decay; see `weight_decay_path`.

    Returns:
        The heads, shape (folds, width + 1, classes).
    """
    weights = fold_weights(rows, folds)
    total = loss.class_weights[rows.labels] @ weights
    start = weights.new_zeros(weights.shape[1], rows.width + 1, len(loss.class_weights))
    return solve(rows, spectrum, loss, start, torch.full_like(total, weight_decay), weights, total, 1e-12)[0]


def fold_weights(rows: TrainingRows, folds: Tensor) -> Tensor:
    """Return the weight of each row for the head of each fold, shape (rows, folds): 0 in its own fold, otherwise 1."""
    return (folds[:, None] != torch.arange(int(folds.max()) + 1, device=folds.device)).to(rows.dtype)


def best_point(points: Sequence[PathPoint]) -> PathPoint:
    """Return the point with the lowest loss.

    The strongest one within a standard error of it (Breiman et al., CART, 1984) would be the usual, more cautious
    choice. On random subsets of four image sets it is worse on three, by up to 1.6 points (benchmarks/README.md).
    """
    return min(points, key=lambda point: point.loss)


def solve(
    rows: TrainingRows,
    spectrum: Spectrum,
    loss: Loss,
    heads: Tensor,
    weight_decay: Tensor,
    weights: Tensor | None,
    total: Tensor,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, int]:
    """Fit several heads at once.

    Args:
        rows: the training rows.
        spectrum: their spectrum.
        loss: the loss of a row.
        heads: where to start, shape (heads, width + 1, classes).
        weight_decay: the weight decay of each head, shape (heads,).
        weights: the weight of each row for each head, shape (rows, heads); None weighs all equally.
        total: the weight of all rows together for each head, shape (heads,).
        tolerance: see `LBFGS.update`.

    Returns:
        The heads, and the number of passes over the rows.
    """
    lbfgs, preconditioner = LBFGS(heads), Preconditioner(spectrum, len(rows))
    for passes in range(1, MOST_PASSES + 1):
        sums = full_pass(rows, lbfgs.trial, loss, weights)
        if passes == 1:
            preconditioner.update(sums, total, weight_decay)
        lbfgs.update(*regularized(sums, lbfgs.trial, total, weight_decay), preconditioner.solve, tolerance)
        if bool(lbfgs.converged.all()):
            break
    return lbfgs.point, passes


def out_of_fold_logits(rows: TrainingRows, heads: Tensor, folds: Tensor) -> Tensor:
    """Return the logits of each row from the head that was not fitted to it, shape (rows, classes)."""
    logits = torch.empty(len(rows), heads.shape[2], dtype=rows.dtype, device=heads.device)
    for part, features in rows.blocks(rows.block_rows(heads.shape[0] * heads.shape[2])):
        for fold, head in enumerate(heads):
            held_out = folds[part] == fold
            logits[part][held_out] = features[held_out] @ head[:-1] + head[-1]
    return logits
