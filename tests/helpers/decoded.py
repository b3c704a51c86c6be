"""Decoded images of a few files."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from headstart.cache.decoded_images import use_decoded_images
from headstart.data.augmentation import training_transform
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Preprocessing, evaluation_transform

PREPROCESSING = Preprocessing(36, 32, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def module(samples: dict[str, Samples], name: str = "none", workers: int = 0, **settings: Any) -> ImageDataModule:
    return ImageDataModule(
        samples,
        training=training_transform(PREPROCESSING, name, **settings),
        evaluation=evaluation_transform(PREPROCESSING),
        batch_size=4,
        evaluation_batch_size=3,
        num_workers=workers,
        seed=5,
    )


def decoded(images: ImageDataModule, max_gb: float = 1) -> ImageDataModule:
    """The same images, read from decoded ones."""
    served = copy(images)
    assert use_decoded_images(served, max_gb=max_gb, show_progress=False)
    return served


def samples_in(root: Path) -> Samples:
    """The images of a folder, all of one class."""
    paths = sorted(str(path) for path in root.rglob("*.jpg"))
    return Samples(paths, np.zeros(len(paths), dtype=np.int64), paths)
