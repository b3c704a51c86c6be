"""What is computed once for a run, as the control panel asks for it: its group `features`, and `data.cache`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from headstart.cache.decoded_images import DecodedDataModule, decoded_images
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import FrozenFeatures, frozen_features
from headstart.cache.staged import StagedDataModule
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import ImageDataModule
from headstart.models.backbone import Backbone
from headstart.models.unfreezing import Strategy
from headstart.utils.hashing import module_sha256

log = logging.getLogger(__name__)


class Batches(NamedTuple):
    """What a run trains on and is evaluated on.

    Attributes:
        training: batches of features, of images, or of features first and images later.
        evaluation: batches of features or of images.
        features: what is cached of the frozen backbone, if anything.
        head_only: whether the backbone is needed for none of these batches.
        decoded: whether images come decoded from the cache.
    """

    training: ImageDataModule | DecodedDataModule | FeatureDataModule | StagedDataModule
    evaluation: ImageDataModule | DecodedDataModule | FeatureDataModule
    features: FrozenFeatures | None
    head_only: bool
    decoded: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Returns what was computed and what was cached."""
        return self.features.metrics if self.features else {}


def build_batches(
    config: Config,
    description: Mapping[str, Any],
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    epochs_done: int,
) -> Batches:
    """Decides what a run trains on: cached features, decoded images, or the images themselves.

    Args:
        config: the control panel.
        description: of the classifier; `model` and `backbone_sha256` are part of the cache's key.
        data: the images.
        strategy: what is frozen, and for how many epochs.
        trainer: that will train.
        epochs_done: by the run that is resumed.
    """
    features = kept_features(config, description, data, strategy, trainer, epochs_done=epochs_done)
    if features and strategy.freeze is True:
        return Batches(features.data, features.data, features, head_only=True, decoded=False)
    decoded = kept_images(config, data, strategy.backbone, trainer)
    images = decoded or data
    if features is None:
        return Batches(images, images, None, head_only=False, decoded=decoded is not None)
    staged = StagedDataModule(features.data, images, strategy.finetuning.head_epochs)
    return Batches(staged, images, features, head_only=False, decoded=decoded is not None)


def kept_features(
    config: Config,
    description: Mapping[str, Any],
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    epochs_done: int,
) -> FrozenFeatures | None:
    """What a backbone makes of the images while all of it is frozen; None where it has to see them at every step.

    Where it unfreezes later, these are of the training and validation images alone.
    """
    whole = strategy.freeze is True
    epochs = config.epochs if whole else strategy.finetuning.head_epochs
    if not isinstance(config.features, CachedFeatures):
        return None
    mixing = config.augment.mixup or config.augment.cutmix  # which mix images, not features
    if not sees_all_images(trainer) or mixing:
        return None
    if not whole and epochs_done >= epochs:  # as where the head never trains alone
        return None
    module = strategy.backbone.module
    return frozen_features(
        module,
        data,
        num_features=strategy.backbone.num_features,
        description={
            "model": description["model"],
            "backbone_sha256": description["backbone_sha256"] or module_sha256(module),
        },
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin,
        engine=config.features.engine,
        views=min(config.features.views, epochs) if config.augment.is_random else 1,
        max_gb=config.features.max_gb,
        show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
        evaluated=None if whole else ("val",),
        place=None if whole else torch.device("cpu"),  # what unfreezes later needs a GPU's memory
    )


def kept_images(
    config: Config, data: ImageDataModule, backbone: Backbone, trainer: pl.Trainer
) -> DecodedDataModule | None:
    """The decoded images; None where they are to be decoded at every step."""
    if config.data.cache != "decoded":
        return None
    if not sees_all_images(trainer):
        log.warning("data.cache=decoded is for runs that see all images (trainer.limit_*_batches): they are read anew")
        return None
    return decoded_images(
        data,
        backbone.preprocessing,
        config.augment.of_images(),
        device=trainer.strategy.root_device,
        max_gb=config.data.cache_gb,
        show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
    )


def sees_all_images(trainer: pl.Trainer) -> bool:
    """Whether what is kept of all images pays: every one will be seen, and processes are not copied from this one."""
    limits = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
    sees_all = all(isinstance(limit, float) and limit == 1 for limit in limits)
    return sees_all and not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
