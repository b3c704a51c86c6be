"""Stratified folds of a cross-validation: which images are held out together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import LabelledImages, Samples
from headstart.utils.errors import DataError


def folded_images(source: LabelledImages) -> Samples:
    """Return the images that are divided into folds: all but those of an official test split."""
    train, val = source.splits["train"], source.splits.get("val")
    return train if val is None else train.joined(val)


def pooled_splits(source: LabelledImages) -> dict[str, Samples]:
    """Return the splits of a source with its own "val" as a part of "train"."""
    pooled = {**source.splits, "train": folded_images(source)}
    pooled.pop("val", None)
    return pooled


def tested_apart(source: LabelledImages, folds: int, seed: int) -> dict[str, Samples]:
    """Return the images that are tested apart from each other: each fold and, if there is one, the source's own "test".

    Raises:
        DataError: see `assign_folds`.
    """
    images = folded_images(source)
    assigned = assign_folds(images, folds, seed, class_names=source.class_names)
    parts = {f"fold {fold}": images.take(np.flatnonzero(assigned == fold)) for fold in range(1, folds + 1)}
    return parts | {name: samples for name, samples in source.splits.items() if name == "test"}


def hold_out(source: LabelledImages, *, folds: int, fold: int | None, split_seed: int) -> dict[str, Samples]:
    """Make one fold the test split, or none for the model that is trained on all folds.

    Args:
        source: its own "val" is divided into folds together with "train"; its own "test" never is.
        folds: number of folds, at least 2.
        fold: the fold that is held out, from 1; None holds none out.
        split_seed: seed of the folds.

    Returns:
        "train" and "test": with a fold held out, the other folds and that fold; without, all folds and, if the source
        has one, its own "test".

    Raises:
        DataError: see `assign_folds`.
    """
    images = folded_images(source)
    assigned = assign_folds(images, folds, split_seed, class_names=source.class_names)
    if fold is None:
        return pooled_splits(source)
    held_out = assigned == fold
    return {"train": images.take(np.flatnonzero(~held_out)), "test": images.take(np.flatnonzero(held_out))}


def assign_folds(samples: Samples, folds: int, seed: int, *, class_names: Sequence[str]) -> NDArray[np.int64]:
    """Assign every image to one fold, stratified by class; images of one group are in the same fold.

    This is scikit-learn's `StratifiedKFold(folds, shuffle=True, random_state=seed)`, or `StratifiedGroupKFold`.

    Args:
        samples: the images, with or without groups.
        folds: number of folds, at least 2.
        seed: scikit-learn's `random_state`.
        class_names: for the messages.

    Returns:
        The fold of each image, from 1 to `folds`; int64, shape (N,).

    Raises:
        DataError: a class has fewer images, or groups, than there are folds, or is in one fold only.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _check_counts(samples, folds, class_names)
    splitter = (StratifiedKFold if samples.groups is None else StratifiedGroupKFold)(
        folds, shuffle=True, random_state=seed
    )
    assigned = np.zeros(len(samples), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(samples.labels, samples.labels, samples.groups), start=1):
        assigned[held_out] = fold
    for index in np.unique(samples.labels).tolist():  # groups may be uneven
        if len(np.unique(assigned[samples.labels == index])) < 2:
            raise DataError(
                f"class '{class_names[index]}' is in one of folds={folds} only, because its images are in groups that "
                f"stay together: no model could learn it. Use fewer folds, or add groups of it."
            )
    return assigned


def _check_counts(samples: Samples, folds: int, class_names: Sequence[str]) -> None:
    """Raise a DataError if a class has fewer images, or groups, than there are folds."""
    what = "images" if samples.groups is None else "groups"
    for index in np.unique(samples.labels).tolist():
        members = np.flatnonzero(samples.labels == index).tolist()
        count = len(members) if samples.groups is None else len({samples.groups[member] for member in members})
        if count < folds:
            raise DataError(
                f"class '{class_names[index]}' has {count} {what}, fewer than folds={folds}, and each fold needs one. "
                f"Use fewer folds, add {what} of it, or take the class out."
            )
