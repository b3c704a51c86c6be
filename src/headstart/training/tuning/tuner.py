"""Learning rate and batch size for `auto`: measured once before training, and the same in all processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from headstart.cache.build import Batches
from headstart.config.data_schema import USUAL_BATCH
from headstart.config.ranges import AUTO
from headstart.data.datamodule import ImageDataModule
from headstart.models.model_folder import read_checkpoint
from headstart.training.checkpoints import without_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.batch_size import best_batch_size
from headstart.training.tuning.lr_range_test import RangeTest, lr_range_test

log = logging.getLogger(__name__)
STEPS_PER_EPOCH = 200  # with up to 6,400 images, the default batch size stays
LARGEST = 256  # images per batch, eight times the default; beyond, the learning rate would have to be tuned again


def head_batch_size(images: int) -> int:
    """Return the batch size for training a head on cached features.

    A head needs so little computation that a step takes hardly longer with more images. With batches of 128, an epoch
    of 35,000 images takes a third of the time that it takes with the default (`benchmarks/head_batches.py`).

    Args:
        images: the number of training images of each process, divided by the number of batches that are accumulated.

    Returns:
        The default batch size, doubled until an epoch has at most `STEPS_PER_EPOCH` steps; at most `LARGEST`.
    """
    size = USUAL_BATCH
    while images > STEPS_PER_EPOCH * size and size < LARGEST:
        size *= 2
    return size


class Tuner(pl.Callback):
    """A callback that determines the learning rate and the batch size if the config does not give them.

    A resumed run takes them from its checkpoint. Otherwise the process of rank 0 measures them, before `fit`, and
    broadcasts them to the other processes in `setup`. Lightning calls `setup` once all processes are running, before
    it creates DataLoaders and optimizers.

    Args:
        lr: the learning rate of the config, a number or "auto".
        batch_size: the batch size of the config, a number or "auto"; None chooses one without measuring: the default,
            or `head_batch_size` for a head on cached features.
        checkpoint: the checkpoint that is resumed, if any.

    Attributes:
        lr: the learning rate; None while it is unknown.
        batch_size: the number of images per step of each process; None while it is unknown.
        range_test: the result of the learning-rate range test, in the process that ran it.

    Raises:
        ModelError: the checkpoint cannot be read.
    """

    def __init__(self, lr: float | str, batch_size: int | str | None, checkpoint: str | Path | None) -> None:
        self._auto = [name for name, value in (("lr", lr), ("batch_size", batch_size)) if value == AUTO]
        saved: dict[str, Any] = {}
        if checkpoint is not None and (self._auto or batch_size is None):
            saved = read_checkpoint(checkpoint)["hyper_parameters"]
        self.lr: float | None = saved.get("optimizer", {}).get("lr") if lr == AUTO else float(lr)
        self.batch_size: int | None = saved.get("batch_size")
        if batch_size is not None and batch_size != AUTO:
            self.batch_size = int(batch_size)
        self.range_test: RangeTest | None = None

    def apply(self, classifier: TransferClassifier, datamodule: ImageDataModule, trainer: pl.Trainer) -> None:
        """Set the values that are known, for the DataLoaders, optimizers and checkpoints created from now on.

        Nothing else sets the learning rate and the batch size of a run; until then, both are None.
        """
        self._datamodule = datamodule
        if self.lr is not None:
            classifier.set_lr(self.lr)
        if self.batch_size is not None:
            datamodule.batch_size = classifier.hparams["batch_size"] = self.batch_size
            if "images_a_step" in classifier.hparams["scheduler"]:
                processes, batches = trainer.world_size, trainer.accumulate_grad_batches
                classifier.hparams["scheduler"]["images_a_step"] = self.batch_size * processes * batches

    def measure(
        self, classifier: TransferClassifier, datamodule: ImageDataModule, batches: Batches, trainer: pl.Trainer
    ) -> None:
        """Determine the values that are still unknown, log them and set them as `apply` does.

        Raises:
            ConfigError: no batch size or learning rate works; see `best_batch_size` and `lr_range_test`.
        """
        count = len(datamodule.splits["train"]) // (trainer.world_size * trainer.accumulate_grad_batches)
        if self.batch_size is None and batches.head_only:
            self.batch_size = head_batch_size(count)
            if "batch_size" in self._auto or self.batch_size != USUAL_BATCH:
                log.info("batch_size: %d, for a head on cached features of %d images", self.batch_size, count)
        elif self.batch_size is None and "batch_size" not in self._auto:
            self.batch_size = USUAL_BATCH
        elif self.batch_size is None and trainer.is_global_zero:
            image_size = classifier.hparams["preprocessing"]["crop"]
            result = best_batch_size(classifier, trainer, image_size=image_size, train_images=count)
            self.batch_size = result.size
            log.info("batch_size=auto: %s", result)
        self.apply(classifier, datamodule, trainer)
        if self.lr is None and trainer.is_global_zero:
            with without_backbone(classifier, batches.head_only):
                self.range_test = lr_range_test(classifier, batches.evaluation, trainer, seed=datamodule.seed)
            self.lr = self.range_test.lr
            log.info("lr=auto: %s", self.range_test)
            self.apply(classifier, datamodule, trainer)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the values that the process of rank 0 broadcasts."""
        if stage == "fit" and self._auto and trainer.world_size > 1:
            assert isinstance(pl_module, TransferClassifier)
            self.lr, self.batch_size = trainer.strategy.broadcast((self.lr, self.batch_size))
            self.apply(pl_module, self._datamodule, trainer)

    @property
    def metrics(self) -> dict[str, float]:
        """Return `auto/lr` and `auto/batch_size`, each only if the config says `auto`."""
        values = {"lr": self.lr, "batch_size": self.batch_size}
        return {f"auto/{name}": value for name in self._auto if (value := values[name]) is not None}
