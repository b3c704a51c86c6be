"""Splits: stratified ones that depend on the labels and a seed alone, and the record of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import LabelledImages, Samples
from headstart.utils.errors import DataError
from headstart.utils.files import csv_text

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


def make_splits(
    source: LabelledImages,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    train_per_class: int | None = None,
) -> dict[str, Samples]:
    """Completes a source's own splits by carving what is missing out of train, stratified.

    Args:
        source: its own "val" and "test" are left as they are and never mixed into training.
        val_fraction: share of the source's training images for "val" where there is none.
        test_fraction: likewise for "test"; 0 leaves it out.
        split_seed: of the splits; nothing else changes them.
        train_per_class: keep only this many training images of each class.

    Returns:
        "train", "val" and, unless it is left out, "test"; no image is in two of them.

    Raises:
        DataError: too few images to split.
    """
    splits = dict(source.splits)
    total = len(splits["train"])
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if name not in splits and fraction > 0:
            left, taken = carve(
                splits["train"].labels,
                carved_size(total, fraction),
                split_seed,
                class_names=source.class_names,
                name=name,
            )
            splits[name] = splits["train"].take(taken)
            splits["train"] = splits["train"].take(left)
    if train_per_class is not None:
        few = few_per_class(splits["train"].labels, train_per_class, split_seed, class_names=source.class_names)
        splits["train"] = splits["train"].take(few)
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def split_table(images: LabelledImages) -> str:
    """Returns which image is in which split, as a csv of image, class and split, with names as they are."""
    rows = [
        (name, images.class_names[label], split)
        for split, samples in images.splits.items()
        for name, label in zip(samples.names, samples.labels, strict=True)
    ]
    return csv_text([("image", "class", "split"), *rows], quoted=False)


def split_sha256(table: str) -> str:
    """SHA-256, in hexadecimal, of what `split_table` gives: which images were trained on, by name, class and split."""
    return hashlib.sha256(table.encode("utf-8", "surrogateescape")).hexdigest()
