"""What a data set has: where its images are, what the classes are, which splits exist."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.utils.errors import DataError

EFFECTIVE = os.access in os.supports_effective_ids  # ask for the user that this process acts for


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Attributes:
        images: paths, or a uint8 array of shape (N, height, width, 3).
        labels: class indices, int64, shape (N,).
        names: what each image is called in the record of the split; unique within a source.
    """

    images: Sequence[str] | NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """The samples at these positions, in this order."""
        if isinstance(self.images, np.ndarray):
            images: Sequence[str] | NDArray[np.uint8] = self.images[indices]
        else:
            images = [self.images[i] for i in indices]
        return Samples(images, self.labels[indices], [self.names[i] for i in indices])


@dataclass(frozen=True)
class LabelledImages:
    """The images of a data set.

    Attributes:
        class_names: in label order.
        splits: those that exist of "train", "val" and "test".
        notes: what a user should know, such as what was skipped.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, int]:
        """Returns `data/num_classes`, and `data/SPLIT_size` of each split."""
        sizes = {f"data/{split}_size": len(samples) for split, samples in self.splits.items()}
        return {"data/num_classes": len(self.class_names), **sizes}


def file_samples(files: Sequence[str], labels: Sequence[int], root: Path) -> Samples:
    """Samples of files that are called by their path below a folder.

    Raises:
        DataError: some are not there, or this user may not read them.
    """
    unreadable = [file for file in files if not os.access(file, os.R_OK, effective_ids=EFFECTIVE)]
    if unreadable:
        why = "permission denied" if os.path.exists(unreadable[0]) else "no such file, or a link to none"  # noqa: PTH110
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]} cannot be read: {why}{more}. Make it readable, or take it out of the data.")
    names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return Samples(list(files), np.asarray(labels, dtype=np.int64), names)
