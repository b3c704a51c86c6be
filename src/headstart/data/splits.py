"""Stratified splits that depend on the labels and a seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.utils.errors import DataError

Indices = NDArray[np.int64]


def carve(
    labels: NDArray[np.int64], size: int, seed: int, *, class_names: Sequence[str], name: str
) -> tuple[Indices, Indices]:
    """Divides samples in two with the same shares of the classes.

    This is scikit-learn's `train_test_split(stratify=...)`, so that splits published as a `random_state` can be
    had again.

    Args:
        labels: class indices, shape (N,).
        size: how many samples to take away, between 1 and N - 1.
        seed: scikit-learn's `random_state`.
        class_names: for the messages.
        name: what is carved, "val" or "test", for the messages.

    Returns:
        Indices of what is left and of what is taken away, each sorted.

    Raises:
        DataError: a class has too few samples to be on both sides.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=len(class_names))
    present = int((counts > 0).sum())
    for index in np.flatnonzero(counts == 1).tolist():
        raise DataError(
            f"class '{class_names[index]}' has a single image left, and a stratified {name} split needs two. "
            f"Add images of it, take the class out, or make a {name} split of your own."
        )
    if not present <= size <= len(labels) - present:
        raise DataError(
            f"a {name} split of {size} out of {len(labels)} images cannot hold all {present} classes on both "
            f"sides. Change data.{name}_fraction, or add images."
        )
    left, taken = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed, stratify=labels)
    for index in np.flatnonzero(counts).tolist():
        for part, where in ((left, "outside of the"), (taken, "in the")):
            if index not in labels[part]:
                raise DataError(
                    f"class '{class_names[index]}' has {counts[index]} images, too few to have one {where} {name} "
                    f"split of {size} images. Add images of it, take the class out, or change data.{name}_fraction."
                )
    return np.sort(left), np.sort(taken)


def carved_size(total: int, fraction: float) -> int:
    """How many of `total` samples a fraction is, rounded up as scikit-learn does."""
    return math.ceil(total * fraction)


def few_per_class(labels: NDArray[np.int64], per_class: int, seed: int, *, class_names: Sequence[str]) -> Indices:
    """Takes the same number of samples of each class at random.

    Args:
        labels: class indices, shape (N,).
        per_class: how many of each.
        seed: of the choice.
        class_names: for the message.

    Returns:
        Sorted indices of the samples taken; with the same seed, more a class include fewer a class.

    Raises:
        DataError: a class has too few samples.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    taken = []
    for index, class_name in enumerate(class_names):
        members = shuffled[labels[shuffled] == index]
        if len(members) < per_class:
            raise DataError(
                f"class '{class_name}' has {len(members)} training images: data.train_per_class={per_class} "
                f"is too many."
            )
        taken.append(members[:per_class])
    return np.sort(np.concatenate(taken))
