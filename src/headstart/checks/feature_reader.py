"""Features of images by the backbone of a config, from the cache that training runs use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import lightning.pytorch as pl

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import backbone_features
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Transform
from headstart.models.backbone import Backbone
from headstart.models.build import open_backbone
from headstart.training.callbacks import ProgressBar
from headstart.training.trainer import build_trainer, quiet_lightning
from headstart.utils.errors import ConfigError


@dataclass(frozen=True)
class FeatureReader:
    """A backbone, and what it takes to compute features that are not cached.

    Attributes:
        backbone: the backbone, of which nothing is trained.
        trainer: gives the device and the precision; it trains nothing.
        settings: the config group `features`.
        num_workers: processes that decode; None chooses.
    """

    backbone: Backbone
    trainer: pl.Trainer
    settings: CachedFeatures
    num_workers: int | None

    def read(self, splits: Mapping[str, Samples], transform: Transform) -> FeatureDataModule:
        """Return the features of images; what a run with the same backbone has computed is not computed again.

        Raises:
            ConfigError: they exceed features.max_gb.
            HeadstartError: an image cannot be read, or the backbone fails; see `frozen_features`.
        """
        data = ImageDataModule(splits, training=transform, evaluation=transform, num_workers=self.num_workers)
        features = backbone_features(
            self.backbone, data, self.trainer, engine=self.settings.engine, max_gb=self.settings.max_gb
        )
        if features is None:
            raise ConfigError(
                f"the features of these images exceed features.max_gb={self.settings.max_gb:g}: raise it, or leave the "
                f"checks of features out."
            )
        return features


def open_reader(config: Config) -> FeatureReader:
    """Open the backbone and the device of a config.

    Raises:
        ConfigError: features are not cached, or this machine does not support the trainer's settings.
        ModelError: there is no such network, or its weights are not available.
    """
    if not isinstance(config.features, CachedFeatures):
        raise ConfigError("the checks of features need them cached: take features=auto, or leave these checks out.")
    quiet_lightning()
    callbacks: list[pl.Callback] = [ProgressBar(leave=False)] if config.trainer.enable_progress_bar else []
    trainer = build_trainer(callbacks, [], {**asdict(config.trainer), "max_epochs": 1})
    pl.seed_everything(config.seed, verbose=False)  # as in a run, for a backbone with random weights
    return FeatureReader(open_backbone(config), trainer, config.features, config.data.num_workers)
