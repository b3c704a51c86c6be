"""All images of a data source in one table, whatever split they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import LabelledImages, Samples

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageTable:
    """The images of all splits, those of train first, then val, then test.

    Attributes:
        samples: images, labels and names.
        splits: index into `SPLITS` of each image's split, int64, shape (images,).
        class_names: names of the classes.
    """

    samples: Samples
    splits: NDArray[np.int64]
    class_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.samples)

    def describe(self, index: int) -> str:
        """Return the class and split of an image, such as "cat, val"."""
        return f"{self.class_names[self.samples.labels[index]]}, {SPLITS[self.splits[index]]}"


def image_table(images: LabelledImages) -> ImageTable:
    """Return the table of all images."""
    present = [split for split in SPLITS if split in images.splits]
    samples = images.splits[present[0]]
    for split in present[1:]:
        samples = samples.joined(images.splits[split])
    splits = np.repeat([SPLITS.index(split) for split in present], [len(images.splits[split]) for split in present])
    return ImageTable(samples, splits.astype(np.int64), images.class_names)
