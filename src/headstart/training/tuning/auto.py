"""Learning rate and batch size for `auto`: measured once before training, and the same in all processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.config.data_schema import USUAL_BATCH
from headstart.config.ranges import AUTO
from headstart.data.datamodule import ImageDataModule
from headstart.models.model_folder import read_checkpoint
from headstart.training.checkpoints import without_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.batch_size import best_batch_size
from headstart.training.tuning.lr_range_test import Batches, RangeTest, lr_range_test

log = logging.getLogger(__name__)
STEPS = 200  # wanted per epoch: with up to 6,400 images, the default batch size stays
MOST_IMAGES = 256  # per batch, eight times the default; beyond, the learning rate would have to be tuned again


def suitable_batch_size(images: int) -> int:
    """Return the batch size for training a head on cached features.

    A head needs so little computation that a step takes hardly longer with more images. With batches of 128, an epoch
    of 35,000 images takes a third of the time that it takes with the default (`benchmarks/head_batches.py`).

    Args:
        images: the number of training images of each process, divided by the number of batches that are accumulated.

    Returns:
        The default batch size, doubled until an epoch has at most `STEPS` steps; at most `MOST_IMAGES`.
    """
    size = USUAL_BATCH
    while images > STEPS * size and size < MOST_IMAGES:
        size *= 2
    return size


class Auto(pl.Callback):
    """A callback that determines the learning rate and the batch size where the config says `auto`.

    A resumed run takes them from its checkpoint. Otherwise the process of rank 0 measures them, before `fit`, and
    broadcasts them to the other processes in `setup`. Lightning calls `setup` once all processes are running, before
    it creates DataLoaders and optimizers.

    Args:
        lr: the learning rate of the config, a number or "auto".
        batch_size: the batch size of the config, a number or "auto"; None chooses one without measuring, see
            `suitable_batch_size`.
        checkpoint: the checkpoint that is resumed, if any.

    Attributes:
        asked: which of "lr" and "batch_size" are "auto" in the config.
        lr: the learning rate; None while it is unknown.
        batch_size: the number of images per step of each process; None while it is unknown.
        range_test: the result of the learning-rate range test, in the process that ran it.

    Raises:
        ModelError: the checkpoint cannot be read.
    """

    def __init__(self, lr: float | str, batch_size: int | str | None, checkpoint: str | Path | None) -> None:
        self.asked = [name for name, value in (("lr", lr), ("batch_size", batch_size)) if value == AUTO]
        theirs: dict[str, Any] = {}
        if checkpoint is not None and (self.asked or batch_size is None):
            theirs = read_checkpoint(checkpoint)["hyper_parameters"]
        self.lr: float | None = theirs.get("optimizer", {}).get("lr") if lr == AUTO else float(lr)
        self.batch_size: int | None = theirs.get("batch_size")
        if batch_size is not None and batch_size != AUTO:
            self.batch_size = int(batch_size)
        self.range_test: RangeTest | None = None
        self._data: ImageDataModule | None = None

    @property
    def first_batch_size(self) -> int:
        """Return the batch size to build the first DataLoaders with: the default while it is unknown."""
        return self.batch_size or USUAL_BATCH

    def measure(
        self, classifier: TransferClassifier, data: ImageDataModule, batches: Batches, trainer: pl.Trainer
    ) -> None:
        """Measure the numbers that are still unknown, in the process of rank 0, and log them.

        The numbers are set in the classifier and in `data`.

        Args:
            classifier: the classifier, with its backbone.
            data: the images.
            batches: the batches to train on: images, decoded or not, or features of a frozen backbone.
            trainer: the Trainer that will train it.

        Raises:
            ConfigError: no batch size or learning rate works; see `best_batch_size` and `lr_range_test`.
        """
        self._data, cached = data, isinstance(batches, FeatureDataModule)
        how: dict[str, Any] = {
            "device": trainer.strategy.root_device,
            "precision": trainer.precision_plugin,
            "gradient_clip": trainer.gradient_clip_val,
            "show_progress": trainer.progress_bar_callback is not None and trainer.is_global_zero,
        }
        images = len(data.splits["train"]) // (trainer.world_size * trainer.accumulate_grad_batches)
        if self.batch_size is None and (cached or "batch_size" not in self.asked):
            self.batch_size = suitable_batch_size(images) if cached else USUAL_BATCH
            if "batch_size" in self.asked or self.batch_size != USUAL_BATCH:
                log.info("batch_size: %d, for a head on cached features of %d images", self.batch_size, images)
            self._set(classifier, data)
        if self.batch_size is None and trainer.is_global_zero:
            side = classifier.hparams["preprocessing"]["crop"]
            found = best_batch_size(classifier, image_size=side, train_images=images, **how)
            self.batch_size = found.size
            log.info("batch_size=auto: %s", found)
            self._set(classifier, data)
        if self.lr is None and trainer.is_global_zero:
            with without_backbone(classifier, aside=cached):
                self.range_test = lr_range_test(classifier, batches, seed=data.seed, **how)
            self.lr = self.range_test.lr
            log.info("lr=auto: %s", self.range_test)
            self._set(classifier, data)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the numbers that the process of rank 0 broadcasts."""
        if stage != "fit" or trainer.world_size == 1:
            return
        if self.asked:
            assert isinstance(pl_module, TransferClassifier)
            assert self._data is not None
            self.lr, self.batch_size = trainer.strategy.broadcast((self.lr, self.batch_size))
            self._set(pl_module, self._data)

    def _set(self, classifier: TransferClassifier, data: ImageDataModule) -> None:
        """Set the known numbers, for the DataLoaders, optimizers and checkpoints created from now on."""
        if self.batch_size is not None:
            schedule = classifier.hparams["scheduler"]
            if "images_a_step" in schedule:
                steps = schedule["images_a_step"] // data.batch_size
                classifier.hparams["scheduler"] = {**schedule, "images_a_step": steps * self.batch_size}
            data.batch_size = classifier.hparams["batch_size"] = self.batch_size
        if self.lr is not None:
            classifier.set_lr(self.lr)

    @property
    def metrics(self) -> dict[str, float]:
        """Return `auto/lr` and `auto/batch_size`, each only if the config says `auto`."""
        found = {"lr": self.lr, "batch_size": self.batch_size}
        return {f"auto/{name}": value for name in self.asked if (value := found[name]) is not None}
