"""The images that the control panel asks for: its groups `data` and `augment`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.csv_table import csv
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples, Source
from headstart.data.image_folder import imagefolder
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.data.public_datasets import caltech101, digits, glyphs, pets, stl10
from headstart.data.splits import make_splits

log = logging.getLogger(__name__)

SOURCES: dict[str, Callable[..., Source]] = {
    "imagefolder": imagefolder,
    "csv": csv,
    "stl10": stl10,
    "pets": pets,
    "caltech101": caltech101,
    "digits": digits,
    "glyphs": glyphs,
}


def open_source(name: str, **settings: Any) -> Source:
    """Finds the images of a data source.

    Args:
        name: a key of `SOURCES`.
        **settings: the arguments of that function.

    Raises:
        DataError: images, tables or classes are not as they should be; the message says what to do.
    """
    return SOURCES[name](**settings)


def open_images(config: Config) -> tuple[Source, dict[str, Samples]]:
    """The source, and its images by split."""
    source = open_source(config.data.source, **config.data.of_source())
    for note in source.notes:
        log.info(note)
    return source, make_splits(source, **config.data.of_splits())


def build_data(
    config: Config, splits: dict[str, Samples], preprocessing: Preprocessing, *, batch_size: int, processes: int
) -> ImageDataModule:
    """The images as the network takes them.

    Args:
        config: the control panel.
        splits: the images.
        preprocessing: that the network expects.
        batch_size: images of a training step in each process.
        processes: that train on this machine.
    """
    return ImageDataModule(
        splits,
        training=training_transform(preprocessing, **config.augment.of_images()),
        evaluation=evaluation_transform(preprocessing),
        batch_size=batch_size,
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
        processes=processes,
        seed=config.seed,
        balanced=config.data.sampling == "balanced",
    )
