"""Samples of the training images that grow: each holds the one before it, stratified, with groups in one piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PER_CLASS, MOST = 16, 2000  # images of the first sample, on the average of the classes, and in all
LEAST = 2  # images (or groups) of every class that come first: one to fit to and one to answer


def sample_order(labels: NDArray[np.int64], groups: Sequence[str] | None, seed: int) -> NDArray[np.int64]:
    """Return an order of images of which every beginning is a stratified sample at random.

    A class has as large a fraction of the beginning as of all images, but for the first `LEAST` of each class.

    Args:
        labels: shape (images,).
        groups: group of each image: its images follow one another. None without groups.
        seed: of the order.

    Returns:
        All indices, int64, shape (images,).
    """
    codes = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    _, first = np.unique(codes, return_index=True)
    of_unit = labels[first]  # a group of several classes counts for that of its first image
    ranks = np.empty(len(first), dtype=np.int64)
    for label in np.unique(of_unit):
        members = np.flatnonzero(of_unit == label)
        ranks[members] = rng.permutation(len(members))
    sizes = np.bincount(of_unit)[of_unit]
    places = np.where(ranks < LEAST, ranks - LEAST, (ranks + rng.random(len(ranks))) / sizes)
    order: NDArray[np.int64] = np.lexsort((np.arange(len(codes)), places[codes]))
    if groups is None:
        return order
    # Groups that begin at the same place, which the first ones of each class do, stay whole.
    by_place = np.lexsort((rng.random(len(first)), places))
    position = np.empty(len(first), dtype=np.int64)
    position[by_place] = np.arange(len(first))
    return np.argsort(position[codes], kind="stable")


def first_size(images: int, classes: int) -> int:
    """Return the number of images of the first sample."""
    return min(images, MOST, max(PER_CLASS * classes, LEAST * classes))


def beginning(order: NDArray[np.int64], groups: Sequence[str] | None, size: int) -> NDArray[np.int64]:
    """Return the first images of an order, about `size` of them: a group that has begun is taken whole."""
    while groups is not None and 0 < size < len(order) and groups[order[size]] == groups[order[size - 1]]:
        size += 1
    return order[:size]
