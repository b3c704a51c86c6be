"""Selection of a run's data: cached features (group `features`), decoded images (`data.cache`) or image files."""

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
from headstart.config.optimizer_schema import LBFGS
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import ImageDataModule
from headstart.models.unfreezing import Strategy
from headstart.utils.errors import ConfigError
from headstart.utils.hashing import module_sha256
from headstart.utils.progress import shows_progress

log = logging.getLogger(__name__)
NO_FEATURES = (
    "optimizer=lbfgs fits the head to cached features, and this run has none: they exceed features.max_gb, "
    "trainer.limit_*_batches leaves images out, or the strategy starts its processes by spawn or fork. Mend that, or "
    "take optimizer=adam."
)


@dataclass(frozen=True)
class Batches:
    """The data modules that a run uses.

    Attributes:
        training: data module for `Trainer.fit`: images, features, or features until the backbone is unfrozen.
        evaluation: data module of all splits for everything but fitting: features if the backbone stays frozen, else
            images.
        features: the cached features; None if the backbone computes them at every step.
        decoded: whether images are read from the cache of decoded images.
        features_s: seconds spent on obtaining the features.
    """

    training: ImageDataModule | FeatureDataModule
    evaluation: ImageDataModule | FeatureDataModule
    features: FrozenFeatures | None
    decoded: bool
    features_s: float

    @property
    def head_only(self) -> bool:
        """Tell whether only the head runs, on cached features."""
        return isinstance(self.evaluation, FeatureDataModule)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the entries for metrics.json; empty without cached features."""
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
    """Decide what a run trains on (features, decoded images or image files), and compute what is not cached yet.

    Args:
        config: the config of the run.
        description: description of the classifier; `model` and `backbone_sha256` identify the cached features.
        data: the images; it is modified in place to read decoded images if they are used.
        strategy: the backbone, what of it is frozen, and for how many epochs.
        trainer: the trainer that will train.
        epochs_done: number of epochs that a resumed run has already trained.

    Raises:
        ConfigError: if a head is to be fitted to features, and they cannot be cached.
        HeadstartError: if an image cannot be read, the disk is full, or the backbone fails; see `frozen_features`.
    """
    start = time.perf_counter()
    whole, module, features = strategy.freeze is True, strategy.backbone.module, None
    epochs = config.max_epochs if whole else strategy.finetuning.head_epochs  # of the head alone
    cacheable = sees_all_images(trainer) and not config.loss.mixes and (whole or epochs_done < epochs)
    if isinstance(config.features, CachedFeatures) and cacheable:
        sha256 = description["backbone_sha256"] or module_sha256(module)
        features = frozen_features(
            module,
            data,
            trainer,
            num_features=strategy.backbone.num_features,
            description={"model": description["model"], "backbone_sha256": sha256},
            engine=config.features.engine,
            views=_views(config, config.features, epochs),
            max_gb=config.features.max_gb,
            until_epoch=None if whole else epochs,
        )
    if isinstance(config.optimizer, LBFGS):
        if features is None:
            raise ConfigError(NO_FEATURES)
        features.data.in_blocks = True
    features_s = time.perf_counter() - start
    whole = whole and features is not None
    decoded = not whole and _decodes(config, data, trainer)
    training = features.data if features else data
    return Batches(training, training if whole else data, features, decoded, features_s)


def _views(config: Config, features: CachedFeatures, epochs: int) -> int:
    """Return the number of views of each training image: at most one an epoch, unless all are rows of a fitted head."""
    if not config.augment.is_random:
        return 1
    return features.views if isinstance(config.optimizer, LBFGS) else min(features.views, epochs)


def _decodes(config: Config, data: ImageDataModule, trainer: pl.Trainer) -> bool:
    """Set the data module up to read decoded images; return False if images are decoded at every step instead."""
    if config.data.cache != "decoded":
        return False
    if not sees_all_images(trainer):
        log.warning("data.cache=decoded is for runs that see all images (trainer.limit_*_batches): they are read again")
        return False
    return use_decoded_images(data, max_gb=config.data.cache_gb, show_progress=shows_progress(trainer))


def sees_all_images(trainer: pl.Trainer) -> bool:
    """Tell whether caching all images is worthwhile.

    It is if the trainer uses every batch and does not launch its processes by multiprocessing (spawn or fork).
    """
    limits = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
    sees_all = all(isinstance(limit, float) and limit == 1 for limit in limits)
    return sees_all and not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
