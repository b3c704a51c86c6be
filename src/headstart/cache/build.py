"""What is computed once for a run, as the control panel asks for it: its group `features`, and `data.cache`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from headstart.cache.decoded_images import use_decoded_images
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import FrozenFeatures, frozen_features
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import ImageDataModule
from headstart.models.unfreezing import Strategy
from headstart.utils.hashing import module_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batches:
    """What a run trains on.

    Attributes:
        training: what is fitted on: images, features of them, or features until the backbone unfreezes.
        evaluation: likewise all splits, for what comes before and after: features where the backbone stays frozen.
        features: what is kept of them; None where the backbone sees the images at every step.
        decoded: whether images are read from decoded ones.
        features_s: seconds that the features took.
    """

    training: ImageDataModule | FeatureDataModule
    evaluation: ImageDataModule | FeatureDataModule
    features: FrozenFeatures | None
    decoded: bool
    features_s: float

    @property
    def head_only(self) -> bool:
        """Whether the backbone never runs."""
        return isinstance(self.evaluation, FeatureDataModule)

    @property
    def metrics(self) -> dict[str, float]:
        """What metrics.json has of it."""
        if self.features is None:
            return {}
        computed, cached = self.features.computed, self.features.cached
        return {
            "features/computed": computed,
            "features/cached": cached,
            "time/features_s": round(self.features_s, 3),
        }


def build_batches(
    config: Config,
    description: Mapping[str, Any],
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    epochs_done: int,
) -> Batches:
    """Decides what a run trains on, and computes what of it is kept: features, decoded images, or nothing.

    Args:
        config: the control panel.
        description: of the classifier; `model` and `backbone_sha256` are part of the key.
        data: the images; it reads decoded ones from now on, where there are any.
        strategy: what is frozen, and for how many epochs.
        trainer: that will train.
        epochs_done: by the run that is resumed.

    Raises:
        HeadstartError: an image, the disk or the backbone; see `frozen_features`.
    """
    start = time.perf_counter()
    features = _features(config, description, data, strategy, trainer, epochs_done=epochs_done)
    features_s = time.perf_counter() - start
    whole = features is not None and strategy.freeze is True
    decoded = not whole and _decodes(config, data, trainer)
    training = features.data if features else data
    return Batches(training, training if whole else data, features, decoded, features_s)


def _features(
    config: Config,
    description: Mapping[str, Any],
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    epochs_done: int,
) -> FrozenFeatures | None:
    """What a backbone makes of the images while all of it is frozen; None where it has to see them at every step."""
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
        until_epoch=None if whole else epochs,
    )


def _decodes(config: Config, data: ImageDataModule, trainer: pl.Trainer) -> bool:
    """Has the images read from decoded ones; False where they are to be decoded at every step."""
    if config.data.cache != "decoded":
        return False
    if not sees_all_images(trainer):
        log.warning("data.cache=decoded is for runs that see all images (trainer.limit_*_batches): they are read anew")
        return False
    progress = config.trainer.enable_progress_bar and trainer.is_global_zero
    return use_decoded_images(data, max_gb=config.data.cache_gb, show_progress=progress)


def sees_all_images(trainer: pl.Trainer) -> bool:
    """Whether what is kept of all images pays: every one will be seen, and processes are not copied from this one."""
    limits = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
    sees_all = all(isinstance(limit, float) and limit == 1 for limit in limits)
    return sees_all and not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
