"""Data source and data module from the config groups `data` and `augment`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from headstart.config.data_schema import Data
from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.csv_table import csv
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages
from headstart.data.folds import folded_images
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
        DataError: see `open_source` and `make_splits`.
    """
    source = open_source(data.source, **data.of_source())
    images = replace(source, splits=make_splits(source, **data.of_splits()))
    if data.folds is None:
        return images
    note = f"the data's own val split is divided into {data.folds} folds together with train"
    notes = [*source.notes, note] if "val" in source.splits else source.notes
    return replace(images, notes=notes, folded=folded_images(source) if data.fold is None else None)


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
