"""Folds that keep the images of a group together, with each class as evenly in them as the groups allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def assign_group_folds(
    labels: NDArray[np.int64], groups: Sequence[str] | NDArray[np.int64], folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Assign images to folds at random, without dividing a group, stratified by class as far as the groups allow.

    One group after the other goes to the fold that makes the sum of the squares of all folds' fractions of the classes
    the least. The groups with the largest fractions come first, while the folds still have room to make up for them.
    scikit-learn's `StratifiedGroupKFold` does nearly the same with standard deviations, in a hundred times the time.

    Args:
        labels: class index of each image, shape (N,).
        groups: name or number of each image's group, shape (N,).
        folds: number of folds, at most that of the groups.
        rng: gives the order of groups with equal fractions.

    Returns:
        The fold of each image, from 0 to `folds` - 1, int64, shape (N,). None is empty.
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    totals = np.bincount(labels)
    # The images of a group and a class, shape (pairs,); the pairs of a group are neighbours.
    pairs, counts = np.unique(codes * len(totals) + labels, return_counts=True)
    of_group, classes = np.divmod(pairs, len(totals))
    fractions = counts / totals[classes]
    starts = np.flatnonzero(np.diff(of_group, prepend=-1))
    ends = np.append(starts[1:], len(pairs))
    sizes = np.add.reduceat(counts, starts)
    order = rng.permutation(len(starts))
    order = order[np.argsort(-np.bincount(of_group, fractions**2)[order].round(9), kind="stable")]
    filled, images = np.zeros((folds, len(totals))), np.zeros(folds, dtype=np.int64)
    assigned = np.empty(len(starts), dtype=np.int64)
    for group in order.tolist():
        members = slice(starts[group], ends[group])
        costs = (filled[:, classes[members]] * fractions[members]).sum(axis=1)
        fold = np.lexsort((images, costs.round(9)))[0]  # of equally good ones, the one with the fewest images
        filled[fold, classes[members]] += fractions[members]
        images[fold] += sizes[group]
        assigned[group] = fold
    return assigned[codes]
