"""Splits that keep the images of a group together, stratified by class as far as the groups allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Samples
from headstart.data.group_folds import assign_group_folds
from headstart.utils.errors import DataError

Counts = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

FOLDS = 20  # a split is put together from folds of a twentieth of the images, or of less for a smaller split
ATTEMPTS = 40  # maximum number of attempts; each begins with other folds
CLOSE = 0.02  # an attempt that is off by at most this fraction of the split's images is taken at once


def grouped_split(
    samples: Samples, wanted: Counts, seed: int, *, later: Sequence[str], class_names: Sequence[str], name: str
) -> tuple[Indices, Indices]:
    """Split samples in two without dividing a group, stratified by class as far as the groups allow.

    The groups are dealt to many folds, and those are united whose images are nearest to the wanted numbers of each
    class. Then groups change sides as long as that brings the split nearer. The best of several such attempts is
    returned.

    Args:
        samples: images with groups.
        wanted: number of images of each class to split off, shape (classes,).
        seed: seed of the attempts.
        later: the splits that the remaining samples are for, "train" first; each needs a group of every class.
        class_names: for the messages.
        name: the split that is split off, "val" or "test", for the messages.

    Returns:
        Indices of the remaining samples and of those that are split off, each sorted.

    Raises:
        DataError: a class has too few groups to be in every split, or no attempt puts it there.
    """
    assert samples.groups is not None
    numbers = {group: number for number, group in enumerate(sorted(set(samples.groups)))}
    codes = np.array([numbers[group] for group in samples.groups])
    images = np.zeros((len(numbers), len(class_names)))  # by group and class
    np.add.at(images, (codes, samples.labels), 1)
    members = (images > 0).astype(np.float64)  # which groups have images of a class
    _check_number_of_groups(members.sum(axis=0), later, class_names, name)
    target = _Target(wanted, images.sum(axis=0), members.sum(axis=0), len(later))
    best, least = np.zeros(len(numbers), dtype=np.bool_), math.inf
    rng = np.random.default_rng(seed)
    number = min(max(FOLDS, math.ceil(len(samples) / float(wanted.sum()))), len(numbers))
    for _ in range(ATTEMPTS):
        folds = np.zeros(len(numbers), dtype=np.int64)
        folds[codes] = assign_group_folds(samples.labels, codes, number, rng)
        start = rng.random(folds.max() + 1) < wanted.sum() / len(samples)  # each attempt begins elsewhere
        union = _approach(target, start, _sums(images, folds), _sums(members, folds))
        chosen = _approach(target, union[folds], images, members)
        cost = float(target.costs(images[chosen].sum(axis=0), members[chosen].sum(axis=0)))
        if cost < least:
            best, least = chosen, cost
        if least <= CLOSE * wanted.sum():
            break
    _check_sides(members, best, later, class_names, name)
    return np.flatnonzero(~best[codes]), np.flatnonzero(best[codes])


class _Target(NamedTuple):
    """What is wanted of a split.

    Attributes:
        wanted: number of images of each class to split off.
        images: number of images of each class in all.
        groups: number of groups with images of each class in all.
        later: number of splits that the remaining groups are for.
    """

    wanted: Counts
    images: Counts
    groups: Counts
    later: int

    def costs(self, images: Counts, groups: Counts) -> Counts:
        """Return how far splits are from what is wanted, in images.

        A class that is missing from a side costs more than any numbers of images.

        Args:
            images: numbers of images of each class that are split off, shape (..., classes).
            groups: numbers of groups with images of each class that are split off, shape (..., classes).

        Returns:
            The costs, shape (...).
        """
        missing = (groups < np.minimum(self.groups, 1)) + (self.groups - groups < np.minimum(self.groups, self.later))
        costs: Counts = np.abs(images - self.wanted).sum(axis=-1) + 2 * self.images.sum() * missing.sum(axis=-1)
        return costs


def _sums(values: Counts, folds: Indices) -> Counts:
    """Sum the rows of groups by fold: from shape (groups, classes) to (folds, classes)."""
    sums = np.zeros((folds.max() + 1, values.shape[1]))
    np.add.at(sums, folds, values)
    return sums


def _approach(target: _Target, chosen: Mask, images: Counts, groups: Counts) -> Mask:
    """Move units (folds or groups) to the other side, one at a time, while that lowers the cost.

    Args:
        target: gives the cost.
        chosen: the units that are split off at first, shape (units,).
        images: number of images by unit and class.
        groups: number of groups by unit and class.

    Returns:
        The units that are split off in the end.
    """
    cost = math.inf
    while True:
        sign = np.where(chosen, -1, 1)[:, None]
        costs = target.costs(images[chosen].sum(axis=0) + sign * images, groups[chosen].sum(axis=0) + sign * groups)
        unit = int(costs.argmin())
        if costs[unit] >= cost:
            return chosen
        chosen, cost = chosen ^ (np.arange(len(chosen)) == unit), float(costs[unit])


def _check_number_of_groups(groups: Counts, later: Sequence[str], class_names: Sequence[str], name: str) -> None:
    """Check that a class has a group for each split."""
    for class_name, number in zip(class_names, groups.astype(int).tolist(), strict=True):
        if 0 < number <= len(later):
            raise DataError(
                f"class '{class_name}' has images of {number} group{'s' if number > 1 else ''}, too few for "
                f"{', '.join(later)} and {name}: each needs one, and a group is never divided. Add groups of it, or "
                f"take the class out."
            )


def _check_sides(members: Counts, chosen: Mask, later: Sequence[str], class_names: Sequence[str], name: str) -> None:
    """Check that a split has a group of each class on each side."""
    for class_name, here, there in zip(
        class_names, members[chosen].sum(axis=0), members[~chosen].sum(axis=0), strict=True
    ):
        if here + there > 0 and (here < 1 or there < len(later)):
            where = name if here < 1 else " or ".join(later)
            raise DataError(
                f"no way was found to split off {name} by groups with every class in each split: class "
                f"'{class_name}', which has images of {int(here + there)} groups, would be missing from {where}. Add "
                f"groups of it, take the class out, or change data.split_seed."
            )
