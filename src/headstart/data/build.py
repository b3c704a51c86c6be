"""Data source and data module from the config groups `data` and `augment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from headstart.config.data_schema import Data
from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.csv_table import csv
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.folds import folded_images, pooled_splits, tested_apart
from headstart.data.group_names import suggest_groups
from headstart.data.groups import check_apart, describe_groups, match_groups
from headstart.data.image_folder import imagefolder
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.data.public_datasets import caltech101, digits, glyphs, pets, stl10
from headstart.data.splits import make_splits

SOURCES: dict[str, Callable[..., LabelledImages]] = {
    "imagefolder": imagefolder,
    "csv": csv,
    "stl10": stl10,
    "pets": pets,
    "caltech101": caltech101,
    "digits": digits,
    "glyphs": glyphs,
}


def open_source(name: str, **settings: Any) -> LabelledImages:
    """Return the labelled images of a data source.

    Args:
        name: a key of `SOURCES`.
        **settings: the arguments of that function.

    Raises:
        DataError: images, tables or classes are missing or invalid; the message says what to do.
    """
    return SOURCES[name](**settings)


def open_images(data: Data) -> LabelledImages:
    """Return the images of the configured data source, with all splits.

    Args:
        data: the config group `data`.

    Raises:
        DataError: see `open_source`, `match_groups` and `make_splits`; or a group stands in two splits of the source.
    """
    return split_images(open_grouped(data), data)


def open_grouped(data: Data) -> LabelledImages:
    """Return the images of the configured data source with their groups, in the splits that the source has.

    Raises:
        DataError: see `open_source` and `match_groups`.
    """
    source = open_source(data.source, **data.of_source())
    return source if data.group_pattern is None else match_groups(source, data.group_pattern, data.source)


def split_images(source: LabelledImages, data: Data) -> LabelledImages:
    """Return the images of a data source with the splits that are trained on, and with notes on their groups.

    Raises:
        DataError: see `make_splits`; or a group stands in two splits of the source.
    """
    check_apart(source.splits if data.folds is None else pooled_splits(source))
    splits = make_splits(source, **data.of_splits())
    notes = [*source.notes, *_group_notes(source, splits, data)]
    folded = None
    if data.folds is not None and "val" in source.splits:
        notes.append(f"the data's own val split is divided into {data.folds} folds together with train")
    if data.folds is not None and data.fold is None:
        folded = folded_images(source)
    return replace(source, splits=splits, notes=notes, folded=folded)


def _group_notes(source: LabelledImages, splits: Mapping[str, Samples], data: Data) -> list[str]:
    """Return a note on the groups of the images; without groups, a warning if the names look as if there were some."""
    if source.splits["train"].groups is not None:
        asked = {"val": data.val_fraction, "test": data.test_fraction} if data.folds is None else {}
        return [describe_groups(source, splits, asked)]
    if isinstance(splits["train"].images, np.ndarray):
        return []  # not files
    if data.folds is not None and data.fold is None:
        splits = tested_apart(source, data.folds, data.split_seed)
    suggestion = suggest_groups(
        [name for samples in splits.values() for name in samples.names],
        np.concatenate([samples.labels for samples in splits.values()]),
        [split for split, samples in splits.items() for _ in range(len(samples))],
    )
    return [suggestion.warning] if suggestion else []


def build_data(config: Config, images: LabelledImages, preprocessing: Preprocessing, processes: int) -> ImageDataModule:
    """Return the data module of a run; its training batch size is set once it is known.

    Args:
        config: the configuration of the run.
        images: the labelled images with their splits.
        preprocessing: the preprocessing that the network expects.
        processes: training processes on this machine.
    """
    return ImageDataModule(
        images.splits,
        training=training_transform(preprocessing, **asdict(config.augment)),
        evaluation=evaluation_transform(preprocessing),
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
        processes=processes,
        seed=config.seed,
        balanced=config.data.sampling == "balanced",
    )
