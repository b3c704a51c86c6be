"""The schema of `data`: every key of every source, its type and its range."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from headstart.config.ranges import AUTO, at_least, fraction, or_auto, pixels, within
from headstart.utils.limits import MAX_SIDE

USUAL_BATCH = 32  # images, where auto has nothing to measure: the largest of Masters & Luschi's (arXiv:1804.07612)


@dataclass(kw_only=True)
class Data:
    """What every data source takes."""

    source: str
    batch_size: int | str | None = or_auto(at_least(1))
    evaluation_batch_size: int | None = at_least(1)
    num_workers: int | None = at_least(0)
    cache: Literal["none", "decoded"]
    cache_gb: float = within(lambda value: 0 < value < float("inf"), "a number above 0")
    split_seed: int = at_least(0)
    val_fraction: float = fraction(zero=False)
    test_fraction: float = fraction(zero=True)
    train_per_class: int | None = at_least(1)
    sampling: Literal["shuffled", "balanced"]
    image_size: int | None = pixels(MAX_SIDE)
    resize: int | None = pixels(2 * MAX_SIDE)
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None
    mean: list[float] | None = within(
        lambda value: len(value) == 3 and min(value) >= 0 and max(value) <= 1, "three numbers in [0, 1], one a channel"
    )
    std: list[float] | None = within(
        lambda value: len(value) == 3 and min(value) > 0, "three numbers above 0, one a channel"
    )

    @property
    def first_batch_size(self) -> int:
        """The number of `batch_size`; where there is none yet, the usual one."""
        return USUAL_BATCH if self.batch_size is None or self.batch_size == AUTO else int(self.batch_size)

    # Which settings are whose; what is left is the source's own.

    def of_splits(self) -> dict[str, Any]:
        """The arguments of `make_splits`."""
        return self._picked("val_fraction", "test_fraction", "split_seed", "train_per_class")

    def of_preprocessing(self) -> dict[str, Any]:
        """The arguments of `Preprocessing.changed`."""
        return self._picked("image_size", "resize", "interpolation", "mean", "std")

    def of_source(self) -> dict[str, Any]:
        """The arguments of the data source: those that not every source has."""
        return self._picked(*(f.name for f in fields(self) if f not in fields(Data)))

    def told(self) -> dict[str, Any]:
        """What a model says about the data it was trained on: how they were split, and how their table is written."""
        names = ("source", "split_seed", "val_fraction", "test_fraction", "image_column", "label_column", "classes")
        return self._picked(*(name for name in names if hasattr(self, name)))

    def _picked(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class ImageFolder(Data):
    """Folders of images, one a class."""

    root: str


@dataclass(kw_only=True)
class Csv(Data):
    """A folder of images and a table of their labels."""

    root: str
    images: str
    train_csv: str
    test_csv: str | None
    image_column: str
    label_column: str
    classes: dict[str, str] | None


@dataclass(kw_only=True)
class Public(Data):
    """A public data set that can be downloaded."""

    root: str
    download: bool


@dataclass(kw_only=True)
class Glyphs(Data):
    """Letters and digits rendered from matplotlib's fonts."""

    per_class: int = at_least(4)
    size: int = at_least(8)
    seed: int = at_least(0)
