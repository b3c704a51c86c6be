"""What copies in two splits do to a result: accuracy with and without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.cache.feature_loaders import FeatureTable
from headstart.checks.findings import Consequence
from headstart.checks.heads import classify, cross_validate
from headstart.checks.table import SPLITS, ImageTable
from headstart.utils.progress import Advance


def leaked_images(table: ImageTable, groups: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Tell which images have a copy in an earlier split, shape (images,).

    Args:
        table: the images.
        groups: indices of images that show the same picture.
    """
    leaked = np.zeros(len(table), dtype=np.bool_)
    for group in groups:
        members = np.asarray(group)
        leaked[members] = table.splits[members] > table.splits[members].min()
    return leaked


def leak_consequences(
    table: ImageTable,
    features: FeatureTable,
    leaked: NDArray[np.bool_],
    groups: Sequence[str] | None,
    advance: Advance,
) -> list[Consequence]:
    """Fit a head to train, as optimizer=lbfgs does, and count its correct answers on each later split that has leaks.

    Args:
        table: the images.
        features: their features.
        leaked: which images have a copy in an earlier split.
        groups: the group of each image, for the folds in which the weight decay is chosen; None without groups.
        advance: see `cross_validate`.
    """
    later = [number for number in np.unique(table.splits[leaked]).tolist() if SPLITS[number] != "train"]
    train, labels = np.flatnonzero(table.splits == SPLITS.index("train")), table.samples.labels
    if not later:
        return []
    own_groups = None if groups is None else [groups[index] for index in train.tolist()]
    fitted = cross_validate(features, train, labels[train], own_groups, len(table.class_names), advance)
    head, consequences = fitted.final_head(), []
    for number in later:
        images = np.flatnonzero(table.splits == number)
        correct, clean = classify(head, features, images) == labels[images], ~leaked[images]
        consequences.append(
            Consequence(SPLITS[number], len(images), int(correct.sum()), int(clean.sum()), int(correct[clean].sum()))
        )
    return consequences
