"""Tables of groups of images: how many each split and class has, and which are the largest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headstart.data.dataset import Samples
from headstart.utils.files import csv_text


class GroupRow(NamedTuple):
    """A group and its images in a split; a group is in one split only.

    Attributes:
        group: its name.
        split: the name of the split.
        images: number of its images.
        classes: the classes of its images with their numbers, the most frequent one first.
    """

    group: str
    split: str
    images: int
    classes: str


def group_rows(splits: Mapping[str, Samples], class_names: Sequence[str]) -> list[GroupRow]:
    """Return the groups of all splits, the largest first; nothing without groups."""
    rows = []
    for split, samples in splits.items():
        labels: dict[str, Counter[int]] = defaultdict(Counter)
        for group, label in zip(samples.groups or (), samples.labels.tolist(), strict=False):
            labels[group][label] += 1
        for group, counter in labels.items():
            classes = ", ".join(f"{class_names[label]} {count}" for label, count in counter.most_common())
            rows.append(GroupRow(group, split, counter.total(), classes))
    return sorted(rows, key=lambda row: (-row.images, row.group))


def groups_csv(rows: Sequence[GroupRow]) -> str:
    """Return CSV text with the columns group, split, images and classes."""
    return csv_text([GroupRow._fields, *rows])


def groups_by_class(splits: Mapping[str, Samples], class_names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return each class's number of groups in each split, the class with the fewest groups first."""
    pairs = [set(zip(samples.labels.tolist(), samples.groups or (), strict=False)) for samples in splits.values()]
    counters = [Counter(label for label, _ in of_split) for of_split in pairs]
    rows = [(name, [counter[label] for counter in counters]) for label, name in enumerate(class_names)]
    return sorted(rows, key=lambda row: sum(row[1]))
