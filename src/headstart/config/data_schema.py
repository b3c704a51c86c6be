"""Structured configs of the group `data`: every key of every data source, its type and its range."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from headstart.config.ranges import AUTO, at_least, fraction, or_auto, pixels, positive, within
from headstart.utils.limits import MAX_SIDE

# Images in a batch if `batch_size` is null, or auto and not measured yet: the largest of Masters & Luschi's batch sizes
# (arXiv:1804.07612).
USUAL_BATCH = 32


@dataclass(kw_only=True)
class Data:
    """The keys of every data source."""

    source: str
    batch_size: int | str | None = or_auto(at_least(1))
    evaluation_batch_size: int | None = at_least(1)
    num_workers: int | None = at_least(0)
    cache: Literal["none", "decoded"]
    cache_gb: float = positive()
    split_seed: int = at_least(0)
    val_fraction: float = fraction(zero=True)
    test_fraction: float = fraction(zero=True)
    train_per_class: int | None = at_least(1)
    group_pattern: str | None = None
    folds: int | None = at_least(2, default=None)  # config.yaml of an older run has none
    fold: int | None = at_least(1, default=None)
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
        """Return `batch_size`, or `USUAL_BATCH` if it is null or auto."""
        return USUAL_BATCH if self.batch_size is None or self.batch_size == AUTO else int(self.batch_size)

    def of_splits(self) -> dict[str, Any]:
        """Return the arguments of `make_splits`."""
        return self._select("val_fraction", "test_fraction", "split_seed", "train_per_class", "folds", "fold")

    def of_preprocessing(self) -> dict[str, Any]:
        """Return the arguments of `Preprocessing.with_overrides`."""
        return self._select("image_size", "resize", "interpolation", "mean", "std")

    def of_source(self) -> dict[str, Any]:
        """Return the arguments of the data source's function: the keys that are not in `Data`."""
        return self._select(*(f.name for f in fields(self) if f not in fields(Data)))

    def description(self) -> dict[str, Any]:
        """Return the settings that model.json records about the data: the source, its splits and its table's format."""
        names = ("source", "split_seed", "val_fraction", "test_fraction", "image_column", "label_column", "classes")
        chosen = (name for name in ("group_pattern", "group_column") if getattr(self, name, None) is not None)
        folds = ("folds", "fold") if self.folds is not None else ()
        return self._select(*(name for name in names if hasattr(self, name)), *chosen, *folds)

    def _select(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class ImageFolder(Data):
    """One folder of images for each class."""

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
    group_column: str | None = None
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
