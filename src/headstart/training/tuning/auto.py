"""The numbers that `auto` stands for: measured once before the training, and the same in all processes."""

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
STEPS = 200  # of an epoch: 6,400 images and fewer keep the usual batches
MOST_IMAGES = 256  # eight times as many as usual: beyond, a run would have to be tuned anew


def suitable_batch_size(images: int) -> int:
    """Images a step for a head on cached features: the usual ones, and twice as many until an epoch has `STEPS` steps.

    A head's own work is so little that a step takes hardly longer with more images: an epoch of 35,000 takes a third of
    the time in batches of 128 (`benchmarks/head_batches.py`).

    Args:
        images: of an epoch, in each process.
    """
    size = USUAL_BATCH
    while images > STEPS * size and size < MOST_IMAGES:
        size *= 2
    return size


class Auto(pl.Callback):
    """The learning rate and the batch size of a run that leaves them to `auto`.

    A run that is resumed takes those of its checkpoint. Else the first process measures them, before `fit`. Lightning
    starts the others there, or has them wait for each other, and sets up callbacks before there are loaders and
    optimizers: then the first one tells them.

    Args:
        lr: of the control panel: a number or auto.
        batch_size: likewise; None takes what suits the work: see `suitable_batch_size`.
        checkpoint: that is resumed, if any.

    Attributes:
        lr: None if it is not known yet.
        batch_size: likewise.
        range_test: the curve, in the process that measured it.

    Raises:
        ModelError: the checkpoint cannot be read.
    """

    def __init__(self, lr: float | str, batch_size: int | str | None, checkpoint: str | Path | None) -> None:
        self.asked = [name for name, value in (("lr", lr), ("batch_size", batch_size)) if value == AUTO]
        theirs: dict[str, Any] = {}
        if self.asked and checkpoint is not None:
            theirs = read_checkpoint(checkpoint)["hyper_parameters"]
        self.lr: float | None = theirs.get("optimizer", {}).get("lr") if lr == AUTO else float(lr)
        self.batch_size: int | None = theirs.get("batch_size") if batch_size == AUTO else None
        if batch_size is not None and batch_size != AUTO:
            self.batch_size = int(batch_size)
        self.range_test: RangeTest | None = None
        self._data: ImageDataModule | None = None

    @property
    def first_batch_size(self) -> int:
        """A batch size to build the loaders with."""
        return self.batch_size or USUAL_BATCH

    def measure(
        self, classifier: TransferClassifier, data: ImageDataModule, batches: Batches, trainer: pl.Trainer
    ) -> None:
        """Measures what is not known, in the first process, and says so; the classifier and the data then have it.

        Args:
            classifier: with its backbone.
            data: the images.
            batches: what it is trained on: the images, decoded or not, or features of a frozen backbone.
            trainer: that will train it.

        Raises:
            ConfigError: there is no such number; see `lr_range_test` and `best_batch_size`.
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
        """Takes the numbers of the first process."""
        if stage != "fit" or trainer.world_size == 1:
            return
        if self.asked:
            assert isinstance(pl_module, TransferClassifier)
            assert self._data is not None
            self.lr, self.batch_size = trainer.strategy.broadcast((self.lr, self.batch_size))
            self._set(pl_module, self._data)

    def _set(self, classifier: TransferClassifier, data: ImageDataModule) -> None:
        """Sets what is known, for loaders, optimizers and checkpoints to come."""
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
        """Returns `auto/lr` and `auto/batch_size`, of what was left to auto."""
        found = {"lr": self.lr, "batch_size": self.batch_size}
        return {f"auto/{name}": value for name in self.asked if (value := found[name]) is not None}
