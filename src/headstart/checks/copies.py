"""Pictures that are in the data more than once: in two splits, with different labels, or just twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable

COMPARED = 20  # images of a group whose labels are compared with those of all its images


def equal_groups(keys: Sequence[Hashable | None]) -> list[list[int]]:
    """Return the indices of images with equal keys, for each key that several have; None equals nothing."""
    by_key = defaultdict[Hashable, list[int]](list)
    for index, key in enumerate(keys):
        if key is not None:
            by_key[key].append(index)
    return [indices for indices in by_key.values() if len(indices) > 1]


def connected_groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of images that pairs connect, each sorted, in the order of their first images."""
    parents: dict[int, int] = {}

    def root(index: int) -> int:
        parents.setdefault(index, index)
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for left, right in pairs:
        first, second = sorted((root(left), root(right)))
        parents[second] = first
    groups = defaultdict[int, list[int]](list)
    for index in sorted(parents):
        groups[root(index)].append(index)
    return list(groups.values())


def belonging_together(table: ImageTable, copies: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return, for each image, the first of those that belong together with it: copies, and images of its group."""
    named = [] if table.samples.groups is None else equal_groups(table.samples.groups)
    first = np.arange(len(table))
    for group in connected_groups(links([*copies, *named])):
        first[group] = group[0]
    return first


def links(groups: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Return pairs that connect the images of each group."""
    return ((group[0], other) for group in groups for other in group[1:])


def copy_findings(table: ImageTable, groups: Iterable[Sequence[int]], detail: str, prefix: str = "") -> list[Finding]:
    """Return the findings on groups of images that show the same picture.

    Every image but the first of a group is a copy. It is a leak, too, if an image of an earlier split is in its group.
    Every pair of a group with different labels is a conflict; of a large group, only those with its first images.

    Args:
        table: the images.
        groups: the indices of the images of each group, two or more.
        detail: how they are the same, such as "identical bytes".
        prefix: "near_" for pictures that are nearly the same.
    """
    return [finding for group in groups for finding in _of_group(table, sorted(group), detail, prefix)]


def _of_group(table: ImageTable, group: Sequence[int], detail: str, prefix: str) -> Iterator[Finding]:
    names, labels, splits = table.samples.names, table.samples.labels, table.splits
    first = group[0]
    for index in group[1:]:
        yield Finding(f"{prefix}copy", names[index], names[first], detail=detail)
        earlier = [other for other in group if splits[other] < splits[index]]
        if earlier:
            yield Finding(f"{prefix}leak", names[index], names[earlier[0]], detail=_both(table, index, earlier[0]))
        for other in group[:COMPARED]:
            if other < index and labels[other] != labels[index]:
                yield Finding(f"{prefix}conflict", names[index], names[other], detail=_both(table, index, other))


def _both(table: ImageTable, index: int, other: int) -> str:
    return f"{table.describe(index)}; {table.describe(other)}"
