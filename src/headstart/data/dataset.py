"""Labelled images: image paths or pixels, labels, class names and splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.utils.errors import DataError

EFFECTIVE_IDS = os.access in os.supports_effective_ids  # check access for the effective user id


@dataclass(frozen=True)
class Samples:
    """The images and labels of one split.

    Attributes:
        images: paths, or a uint8 array of shape (N, height, width, 3).
        labels: class indices, int64, shape (N,).
        names: name of each image in the csv record of the splits; unique within a data source.
        groups: name of each image's group, such as a patient; images of one group stay together. None without groups.
    """

    images: Sequence[str] | NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """Return the samples at these indices, in this order."""
        if isinstance(self.images, np.ndarray):
            images: Sequence[str] | NDArray[np.uint8] = self.images[indices]
        else:
            images = [self.images[i] for i in indices]
        groups = None if self.groups is None else [self.groups[i] for i in indices]
        return Samples(images, self.labels[indices], [self.names[i] for i in indices], groups)

    def joined(self, others: Samples) -> Samples:
        """Return these samples followed by others of the same data source."""
        if isinstance(self.images, np.ndarray):
            images: Sequence[str] | NDArray[np.uint8] = np.concatenate([self.images, np.asarray(others.images)])
        else:
            images = [*self.images, *others.images]
        groups = None if self.groups is None or others.groups is None else [*self.groups, *others.groups]
        return Samples(images, np.concatenate([self.labels, others.labels]), [*self.names, *others.names], groups)


@dataclass(frozen=True)
class LabelledImages:
    """The classes and splits of a data source.

    Attributes:
        class_names: names of the classes; a label is an index into this tuple.
        splits: the existing ones of "train", "val" and "test".
        notes: messages for the user, such as which files were skipped.
        folded: of a cross-validation, the images that are divided into folds; otherwise None.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    notes: Sequence[str] = field(default_factory=list)
    folded: Samples | None = None

    @property
    def metrics(self) -> dict[str, int]:
        """Return the metrics `data/num_classes` and, for each split, `data/SPLIT_size`."""
        sizes = {f"data/{split}_size": len(samples) for split, samples in self.splits.items()}
        return {"data/num_classes": len(self.class_names), **sizes}


def file_samples(files: Sequence[str], labels: Sequence[int], root: Path) -> Samples:
    """Return the samples of image files, named by their paths relative to a folder.

    Args:
        files: paths of the images.
        labels: class index of each image.
        root: the folder that names are relative to.

    Raises:
        DataError: files are missing, or the user has no permission to read them.
    """
    unreadable = [file for file in files if not os.access(file, os.R_OK, effective_ids=EFFECTIVE_IDS)]
    if unreadable:
        why = "permission denied" if os.path.exists(unreadable[0]) else "no such file, or a link to none"  # noqa: PTH110
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]} cannot be read: {why}{more}. Make it readable, or take it out of the data.")
    names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return Samples(list(files), np.asarray(labels, dtype=np.int64), names)


def class_samples(files: Sequence[Sequence[str]], root: Path) -> Samples:
    """Return the samples of image files that are listed by class; see `file_samples`."""
    labels = [label for label, of_class in enumerate(files) for _ in of_class]
    return file_samples([file for of_class in files for file in of_class], labels, root)
