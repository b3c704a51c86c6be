"""Learning rate, weight decay and batch size for `auto`: measured once before training, the same in all processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from headstart.cache.build import Batches
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.config.data_schema import USUAL_BATCH
from headstart.config.ranges import AUTO
from headstart.data.datamodule import ImageDataModule
from headstart.models.model_folder import read_checkpoint
from headstart.training.checkpoints import without_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.fitted_head.classifier import FittedHeadClassifier
from headstart.training.fitted_head.path import PRECISIONS
from headstart.training.tuning.batch_size import best_batch_size
from headstart.training.tuning.lr_range_test import RangeTest, lr_range_test
from headstart.utils.progress import progress_bar, shows_progress

log = logging.getLogger(__name__)
TUNED = ("lr", "weight_decay")  # settings of an optimizer that may be auto
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
    """A callback that determines learning rate, weight decay and batch size if the config does not give them.

    A resumed run takes them from its checkpoint. Otherwise the process of rank 0 measures them, before `fit`, and
    broadcasts them to the other processes in `setup`. Lightning calls `setup` once all processes are running, before
    it creates DataLoaders and optimizers.

    Args:
        optimizer: the settings of the config's optimizer; those named in `TUNED` are numbers or "auto".
        batch_size: the batch size of the config, a number or "auto"; None chooses one without measuring: the default,
            or `head_batch_size` for a head on cached features.
        checkpoint: the checkpoint that is resumed, if any.

    Attributes:
        settings: the optimizer's tuned settings by name; a value is None while it is unknown.
        batch_size: the number of images per step of each process; None while it is unknown.
        range_test: the result of the learning-rate range test, in the process that ran it.

    Raises:
        ModelError: the checkpoint cannot be read.
    """

    def __init__(
        self, optimizer: Mapping[str, Any], batch_size: int | str | None, checkpoint: str | Path | None
    ) -> None:
        settings = {name: optimizer[name] for name in TUNED if name in optimizer}
        self._auto = [name for name, value in {**settings, "batch_size": batch_size}.items() if value == AUTO]
        saved: dict[str, Any] = {}
        if checkpoint is not None and (self._auto or batch_size is None):
            saved = read_checkpoint(checkpoint)["hyper_parameters"]
        measured = saved.get("optimizer", {})
        self.settings: dict[str, float | None] = {
            name: measured.get(name) if value == AUTO else float(value) for name, value in settings.items()
        }
        self.batch_size: int | None = saved.get("batch_size")
        if batch_size is not None and batch_size != AUTO:
            self.batch_size = int(batch_size)
        self.range_test: RangeTest | None = None

    def apply(self, classifier: TransferClassifier, datamodule: ImageDataModule, trainer: pl.Trainer) -> None:
        """Set the values that are known, for the DataLoaders, optimizers and checkpoints created from now on.

        Nothing else sets the optimizer's tuned settings and the batch size of a run; until then, they are None.
        """
        self._datamodule = datamodule
        classifier.set_optimizer(**{name: value for name, value in self.settings.items() if value is not None})
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
        if isinstance(classifier, FittedHeadClassifier):
            self.batch_size = USUAL_BATCH  # has no effect
        elif self.batch_size is None and batches.head_only:
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
        if not trainer.is_global_zero:
            return
        if "lr" in self.settings and self.settings["lr"] is None:
            with without_backbone(classifier, batches.head_only):
                self.range_test = lr_range_test(classifier, batches.evaluation, trainer, seed=datamodule.seed)
            self.settings["lr"] = self.range_test.lr
            log.info("lr=auto: %s", self.range_test)
        if self.settings["weight_decay"] is None:
            self.settings["weight_decay"] = self._choose_weight_decay(classifier, batches, trainer)
        self.apply(classifier, datamodule, trainer)

    def _choose_weight_decay(self, classifier: TransferClassifier, batches: Batches, trainer: pl.Trainer) -> float:
        assert isinstance(classifier, FittedHeadClassifier)
        assert isinstance(batches.training, FeatureDataModule)
        most = len(PRECISIONS) * len(batches.training.training_table.rows)
        with progress_bar("Choosing the weight decay", most, shown=shows_progress(trainer)) as advance:
            choice = classifier.choose_weight_decay(batches.training, trainer.strategy.root_device, advance)
        log.info("optimizer.weight_decay=auto: %s", choice)
        return choice.weight_decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the values that the process of rank 0 broadcasts."""
        if stage == "fit" and self._auto and trainer.world_size > 1:
            assert isinstance(pl_module, TransferClassifier)
            self.settings, self.batch_size = trainer.strategy.broadcast((self.settings, self.batch_size))
            self.apply(pl_module, self._datamodule, trainer)

    @property
    def metrics(self) -> dict[str, float]:
        """Return `auto/lr`, `auto/weight_decay` and `auto/batch_size`, each only if the config says `auto`."""
        values = {**self.settings, "batch_size": self.batch_size}
        return {f"auto/{name}": value for name in self._auto if (value := values[name]) is not None}
