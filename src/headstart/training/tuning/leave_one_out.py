"""Ridge regression on features, and its answers for images that it was not fitted to, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

# Penalties, as fractions of the mean eigenvalue of the scatter: from a head that ignores small directions to one that
# interpolates the images. The one with the least leave-one-out error is taken.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(4, -9, -1))
NEARLY_ONE = 1e-9  # an image whose leverage is 1 up to this fraction determines its own answer


def leave_one_out(features: NDArray[np.float32], labels: NDArray[np.int64], groups: Sequence[str] | None) -> Rows:
    """Return the score of each class for each image, by a ridge regression on all other images.

    The regression predicts 1 for the image's class and 0 for the others, from standardised features, with an intercept.
    One eigendecomposition gives the answers for all images and all penalties: with the hat matrix H, the residual of an
    image that is left out is that of the fit divided by 1 - Hᵢᵢ, and of a group it is (I - H_GG)⁻¹ times that of the
    fit (Cook & Weisberg, "Residuals and Influence in Regression", 1982).

    An image that is left out makes its class rarer among the others. With few images and features that tell little,
    that alone would give it another class, and an accuracy below guessing. So the scores are those of classes that are
    as frequent as among all images.

    Args:
        features: shape (images, width).
        labels: from 0, shape (images,).
        groups: group of each image: all images of a group are left out together. None without groups.

    Returns:
        Scores of shape (images, classes), of which the largest is the answer.
    """
    targets = np.eye(int(labels.max()) + 1)[labels]
    means = targets.mean(axis=0)
    directions, values = _directions(features)
    members = _members(groups)
    projected = directions.T @ (targets - means)
    scale = values.sum() / max(1, len(values))  # all features may be constant
    best, least = np.zeros_like(targets), np.inf
    for penalty in PENALTIES:
        shrunk = values / (values + penalty * scale)
        residuals = targets - means - directions @ (shrunk[:, None] * projected)
        left_out = _left_out(residuals, directions * np.sqrt(shrunk), members)
        error = float(np.square(left_out).mean())
        if error < least:
            best, least = left_out, error
    own = targets - means  # of the images that are left out together
    left = np.ones(len(labels))
    for group in members:
        own[group], left[group] = own[group].sum(axis=0), len(group)
    rarer = own / np.maximum(1, len(labels) - left)[:, None]
    scores: Rows = targets - best + rarer
    return scores


def _directions(features: NDArray[np.float32]) -> tuple[Rows, Rows]:
    """Return the left singular vectors of the standardised features, and the squares of their singular values.

    Returns:
        Shapes (images, rank) and (rank,).
    """
    rows = features.astype(np.float64)
    rows -= rows.mean(axis=0)
    deviations = rows.std(axis=0)
    rows /= np.where(deviations > 0, deviations, 1)
    wide = rows.shape[1] >= len(rows)
    values, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    return (vectors if wide else rows @ vectors / np.sqrt(values)), values


def _members(groups: Sequence[str] | None) -> list[NDArray[np.int64]]:
    """Return the indices of the images of each group that has several."""
    if groups is None:
        return []
    _, codes, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    by_group = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    return [of_group for of_group in by_group if len(of_group) > 1]


def _left_out(residuals: Rows, roots: Rows, groups: Sequence[NDArray[np.int64]]) -> Rows:
    """Return the residuals of images that are left out, each with its group.

    Args:
        residuals: of the fit to all images, shape (images, classes).
        roots: a matrix R of shape (images, rank), with the hat matrix R Rᵀ + 1/images.
        groups: indices of the images of each group of several.
    """
    count = len(residuals)
    leverage = np.square(roots).sum(axis=1) + 1 / count
    left_out: Rows = residuals / np.maximum(1 - leverage, NEARLY_ONE)[:, None]
    for members in groups:
        own = np.eye(len(members)) - roots[members] @ roots[members].T - 1 / count
        left_out[members] = np.linalg.lstsq(own, residuals[members], rcond=NEARLY_ONE)[0]
    return left_out
