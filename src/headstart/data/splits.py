"""Stratified train/val/test splits, which depend on labels, groups and a seed alone, and their csv record."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import LabelledImages, Samples
from headstart.data.folds import hold_out
from headstart.data.grouped_split import grouped_split
from headstart.utils.errors import DataError
from headstart.utils.files import csv_text

Indices = NDArray[np.int64]


def stratified_split(
    labels: NDArray[np.int64], size: int, seed: int, *, class_names: Sequence[str], name: str
) -> tuple[Indices, Indices]:
    """Split samples in two, stratified by class.

    This is scikit-learn's `train_test_split(stratify=...)`, so that splits published as a `random_state` can be
    reproduced.

    Args:
        labels: class indices, shape (N,).
        size: number of samples to split off, between 1 and N - 1.
        seed: scikit-learn's `random_state`.
        class_names: for the messages.
        name: the split that is split off, "val" or "test", for the messages.

    Returns:
        Indices of the remaining samples and of those that are split off, each sorted.

    Raises:
        DataError: a class has too few samples to be in both parts, or `size` is too small or large for all classes.
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
    remaining, split_off = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed, stratify=labels)
    for index in np.flatnonzero(counts).tolist():
        for indices, where in ((remaining, "outside of the"), (split_off, "in the")):
            if index not in labels[indices]:
                raise DataError(
                    f"class '{class_names[index]}' has {counts[index]} images, too few to have one {where} {name} "
                    f"split of {size} images. Add images of it, take the class out, or change data.{name}_fraction."
                )
    return np.sort(remaining), np.sort(split_off)


def sample_per_class(labels: NDArray[np.int64], per_class: int, seed: int, *, class_names: Sequence[str]) -> Indices:
    """Draw the same number of samples of each class at random, without replacement.

    Args:
        labels: class indices, shape (N,).
        per_class: number of samples of each class.
        seed: seed of the draw.
        class_names: for the message.

    Returns:
        Sorted indices of the samples. With the same seed, a larger `per_class` gives a superset.

    Raises:
        DataError: a class has too few samples.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    drawn = []
    for index, class_name in enumerate(class_names):
        members = shuffled[labels[shuffled] == index]
        if len(members) < per_class:
            raise DataError(
                f"class '{class_name}' has {len(members)} training images: data.train_per_class={per_class} "
                f"is too many."
            )
        drawn.append(members[:per_class])
    return np.sort(np.concatenate(drawn))


def make_splits(
    source: LabelledImages,
    *,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    train_per_class: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
) -> dict[str, Samples]:
    """Complete the splits of a data source: split missing ones off "train", stratified by class.

    Images of one group, if the source has groups, stay together: see `grouped_split`. With a fold held out, "test" is
    that fold, and "val" is split off the other folds. With folds and none held out, all of them are "train".

    Args:
        source: its own "val" and "test" are left as they are and never used for training.
        val_fraction: fraction of the source's training images for "val", if the source has none; 0 makes none.
        test_fraction: fraction of the source's training images for "test", if the source has none; 0 makes none.
        split_seed: seed of the splits; they depend on no other seed.
        train_per_class: keep only this many training images of each class; None keeps all.
        folds: number of folds of a cross-validation; None divides nothing into folds.
        fold: the fold that is held out, from 1; None holds none out.

    Returns:
        "train" and, as far as they exist, "val" and "test"; no image is in two of them.

    Raises:
        DataError: there are too few images or groups to split.
    """
    splits = dict(source.splits)
    if folds is not None:
        splits = hold_out(source, folds=folds, fold=fold, split_seed=split_seed)
        test_fraction = 0
        val_fraction = 0 if fold is None else val_fraction  # the folds have chosen what a final model needs to know
    everything = splits["train"]
    counts = np.bincount(everything.labels, minlength=len(source.class_names))
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if name not in splits and fraction > 0:
            if everything.groups is None:
                size = math.ceil(len(everything) * fraction)  # as in scikit-learn
                remaining, split_off = stratified_split(
                    splits["train"].labels, size, split_seed, class_names=source.class_names, name=name
                )
            else:
                later = ("train", "val") if name == "test" and "val" not in splits else ("train",)
                remaining, split_off = grouped_split(
                    splits["train"],
                    (fraction * counts).astype(np.float64),
                    split_seed,
                    later=later,
                    class_names=source.class_names,
                    name=name,
                )
            splits[name] = splits["train"].take(split_off)
            splits["train"] = splits["train"].take(remaining)
    if train_per_class is not None:
        few = sample_per_class(splits["train"].labels, train_per_class, split_seed, class_names=source.class_names)
        splits["train"] = splits["train"].take(few)
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def split_table(images: LabelledImages) -> str:
    """Return a csv with the columns image, class, split and, if there are groups, group.

    Names are not escaped for spreadsheets.
    """
    rows = [("image", "class", "split", "group")]
    for split, samples in images.splits.items():
        groups = samples.groups or [""] * len(samples)
        for name, label, group in zip(samples.names, samples.labels, groups, strict=True):
            rows.append((name, images.class_names[label], split, group))
    grouped = images.splits["train"].groups is not None
    return csv_text([row if grouped else row[:-1] for row in rows], quoted=False)


def split_sha256(table: str) -> str:
    """Compute the SHA-256, in hexadecimal, of the output of `split_table`, which identifies the split."""
    return hashlib.sha256(table.encode("utf-8", "surrogateescape")).hexdigest()
