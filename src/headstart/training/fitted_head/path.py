"""Choice of the weight decay of a linear head by cross-validation, along a path from strong to weak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from headstart.data.group_folds import assign_group_folds
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.lbfgs import LBFGS
from headstart.training.fitted_head.objective import Loss, Preconditioner, Sums, regularized
from headstart.utils.errors import ConfigError

# Precisions (inverse variances) of a Gaussian prior of the weights on standardised features, which scikit-learn's
# LogisticRegression calls 1 / C. Divided by the number of rows they are weight decays of the mean loss.
PRECISIONS = tuple(10.0 ** (exponent / 2) for exponent in range(6, -7, -1))
MOST_FOLDS = 5  # Breiman & Spector (1992) find five folds as good as more
RISES = 2  # values in succession with a higher loss than the best, after which weaker ones are not tried
PATH_DTYPE = torch.float32  # twice as fast as float64, and its losses differ by less than their standard error
TOLERANCE = 5e-7  # of the mean loss; far below the standard error of any cross-validated loss
FINAL_TOLERANCE = 1e-12  # of heads whose answers are reported, in float64
FEWEST = 0.5  # images of a class at the start of a fit: its frequency is not 0, however few there are
MOST_PASSES = 200  # for one value of the path


@dataclass(frozen=True)
class PathPoint:
    """The folds' heads for one precision.

    Attributes:
        precision: the precision of the prior.
        loss: the mean out-of-fold log loss.
        error: its standard error.
        by_fold: the sum of the log losses of each fold's rows, shape (folds,).
        heads: the head of each fold in the basis of the spectrum, shape (folds, rank + 1, classes).
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
            "optimizer.weight_decay=auto: it is chosen by cross-validation, and all training images are of one "
            "group. Give a number, such as optimizer.weight_decay=0.01."
        )
    rng = np.random.default_rng(0)
    if groups is not None:
        return assign_group_folds(labels, groups, count, rng)
    folds = np.empty(len(labels), dtype=np.int64)
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds[by_class] = np.arange(len(labels)) % count
    return folds


def number_of_folds(labels: NDArray[np.int64], groups: Sequence[str] | None) -> int:
    """Return the number of folds for `inner_folds`: at most `MOST_FOLDS`; below 2 if nothing can be held out."""
    return min(MOST_FOLDS, len(labels) if groups is None else len(set(groups)))


def weight_decay_path(rows: FoldedRows, loss: Loss, advance: Callable[[int], None] = lambda _: None) -> list[PathPoint]:
    """Fit a head for each fold and each precision, from the strongest to the weakest that may be the best.

    A fit starts where the two before it point to (a secant predictor: Allgower & Georg, Numerical Continuation Methods,
    1990). That halves the passes over the rows, and the heads of weak precisions, whose loss is flat, are much closer
    to their optimum than from the last head alone.

    Args:
        rows: the training rows in folds.
        loss: the loss of a row.
        advance: called with the number of rows after each precision.
    """
    points, best, others = list[PathPoint](), 0, weight_of_others(rows, loss)
    for precision in PRECISIONS:
        start = _extrapolated(points) if points else first_heads(rows, loss)
        heads, passes = solve(rows, loss, start, precision / others)
        losses = held_out_losses(rows, heads)
        every = torch.cat(losses)
        by_fold = torch.stack([own.sum() for own in losses])
        error = float(every.std()) / len(every) ** 0.5
        points.append(PathPoint(precision, float(every.mean()), error, by_fold, heads, passes))
        advance(len(rows))
        if points[-1].loss < points[best].loss:
            best = len(points) - 1
        if len(points) - 1 - best >= RISES:
            break
    return points


def _extrapolated(points: Sequence[PathPoint]) -> Tensor:
    """Return the heads that follow if they change as much again as from the last point but one to the last."""
    heads = points[-1].heads
    return heads if len(points) < 2 else 2 * heads - points[-2].heads


def fit_folds(rows: FoldedRows, loss: Loss, weight_decay: Tensor, start: Tensor | None = None) -> Tensor:
    """Fit the head of each fold with a weight decay of its own to its optimum.

    Args:
        rows: the training rows in folds.
        loss: the loss of a row.
        weight_decay: shape (folds,).
        start: heads to start at; None starts at `first_heads`.

    Returns:
        The heads in the basis of the spectrum, shape (folds, rank + 1, classes).
    """
    return solve(rows, loss, first_heads(rows, loss) if start is None else start, weight_decay, FINAL_TOLERANCE)[0]


def first_heads(rows: FoldedRows, loss: Loss) -> Tensor:
    """Return heads that predict the frequencies of the classes among their rows, shape (folds, rank + 1, classes)."""
    weights, classes = loss.class_weights.to(rows.dtype), len(loss.class_weights)
    # Weighting while counting would not be deterministic on a GPU.
    counts = weights * torch.stack([torch.bincount(labels, minlength=classes) for labels in rows.labels])
    others = (counts.sum(dim=0) - counts).clamp(min=FEWEST)
    heads = torch.zeros(rows.folds, len(rows.spectrum.values) + 1, classes, dtype=rows.dtype, device=counts.device)
    heads[:, -1] = (others / others.sum(dim=1, keepdim=True)).log()
    return heads


def weight_of_others(rows: FoldedRows, loss: Loss) -> Tensor:
    """Return the weight of the rows that the head of each fold is fitted to, shape (folds,)."""
    by_fold = torch.stack([loss.class_weights[labels].sum() for labels in rows.labels]).to(rows.dtype)
    return by_fold.sum() - by_fold


def best_point(points: Sequence[PathPoint]) -> PathPoint:
    """Return the point with the lowest loss.

    The strongest one within a standard error of it (Breiman et al., CART, 1984) would be the usual, more cautious
    choice. On random subsets of four image sets it is as accurate, and its log loss is higher on all of them
    (benchmarks/README.md).
    """
    return min(points, key=lambda point: point.loss)


def solve(
    rows: FoldedRows, loss: Loss, heads: Tensor, weight_decay: Tensor, tolerance: float = TOLERANCE
) -> tuple[Tensor, int]:
    """Fit the head of each fold to the rows of the others.

    Args:
        rows: the training rows in folds.
        loss: the loss of a row.
        heads: where to start, in the basis of the spectrum, shape (folds, rank + 1, classes).
        weight_decay: the weight decay of each head, shape (folds,).
        tolerance: see `LBFGS.update`.

    Returns:
        The heads, and the number of passes over the rows.
    """
    loss, total = loss.to(rows.dtype), weight_of_others(rows, loss)
    lbfgs, preconditioner = LBFGS(heads), Preconditioner(rows.spectrum.values, len(rows))
    for passes in range(1, MOST_PASSES + 1):
        sums = full_pass(rows, lbfgs.trial, loss)
        if passes == 1:
            preconditioner.update(sums, total, weight_decay)
        lbfgs.update(*regularized(sums, lbfgs.trial, total, weight_decay), preconditioner.solve, tolerance)
        if bool(lbfgs.converged.all()):
            break
    return lbfgs.point, passes


def full_pass(rows: FoldedRows, heads: Tensor, loss: Loss) -> Sums:
    """Return the sums of the head of each fold over the rows of the others."""
    heads = rows.spectrum.heads(heads)
    sums = Sums(heads, loss)
    for fold in range(rows.folds):
        others = torch.tensor([other for other in range(rows.folds) if other != fold], device=heads.device)
        part = Sums(heads[others], loss)
        for features, labels in rows.blocks(fold, len(others) * heads.shape[2]):
            part.add(features, labels)
        sums.merge(part, others)
    sums.gradient = rows.spectrum.coordinates(sums.gradient)
    return sums


def held_out_losses(rows: FoldedRows, heads: Tensor) -> list[Tensor]:
    """Return the log losses of the rows of each fold under its head, which was not fitted to them."""
    return [
        torch.cat(
            [
                F.cross_entropy(features @ head[:-1] + head[-1], labels, reduction="none")
                for features, labels in rows.blocks(fold, heads.shape[2])
            ]
        )
        for fold, head in enumerate(rows.spectrum.heads(heads))
    ]
