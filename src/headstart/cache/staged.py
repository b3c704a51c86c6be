"""Features while the head trains alone, images from the epoch on in which the backbone unfreezes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl

from headstart.cache.decoded_images import DecodedDataModule
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.samplers import EpochSampler


class StagedBatches:
    """One of two loaders with as many batches.

    Args:
        features: a loader of them.
        images: a loader of the same images, in the same order.
        frozen: tells whether the epoch that begins takes features.
    """

    def __init__(self, features: Any, images: Any, frozen: Callable[[], bool]) -> None:
        self.features, self.images, self._frozen = features, images, frozen
        sampler = getattr(images, "sampler", None)
        if isinstance(sampler, EpochSampler):  # of training: by this name Lightning finds it, and tells it the epoch
            self.sampler = features.sampler = sampler

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.features if self._frozen() else self.images  # late: see `data.module.Loader`


class StagedDataModule(pl.LightningDataModule):
    """The loaders of a training whose backbone is frozen at first: it need not run before it unfreezes.

    Args:
        features: of training and validation images.
        images: the same images, decoded or not.
        head_epochs: in which the head trains alone.

    Batches are (features of shape (batch, width), int64 labels of shape (batch,)) in those epochs, and
    (float32 images of shape (batch, 3, height, width), labels) after them.
    """

    def __init__(
        self, features: FeatureDataModule, images: ImageDataModule | DecodedDataModule, head_epochs: int
    ) -> None:
        super().__init__()
        self.features, self.images, self.head_epochs = features, images, head_epochs

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Tells both which share of the images is this process's."""
        self.features.trainer = self.images.trainer = self.trainer

    def train_dataloader(self) -> StagedBatches:
        """Training batches in random order."""
        return StagedBatches(self.features.train_dataloader(), self.images.train_dataloader(), self._frozen)

    def val_dataloader(self) -> StagedBatches:
        """Validation batches in order."""
        data = self.images if isinstance(self.images, ImageDataModule) else self.images.images
        features = self.features.evaluation_dataloader("val", data.evaluation_batch_size)
        return StagedBatches(features, self.images.val_dataloader(), self._frozen)

    def _frozen(self) -> bool:
        assert self.trainer is not None
        return self.trainer.current_epoch < self.head_epochs
