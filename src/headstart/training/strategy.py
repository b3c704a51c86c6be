"""Choice of how a run fine-tunes, and of the head that it starts from."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch

from headstart.cache.build import sees_all_images
from headstart.config.optimizer_schema import Gradient
from headstart.config.presets import finetune_preset
from headstart.config.ranges import AUTO
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import ImageDataModule, class_weights
from headstart.models.backbone import Backbone, build_backbone
from headstart.models.head import FittedHead
from headstart.models.model_folder import read_checkpoint
from headstart.models.unfreezing import Finetuning, Strategy
from headstart.training.fitted_head.path import number_of_folds
from headstart.training.fitted_head.start import fit_first_head
from headstart.training.tuning.choose_strategy import FROZEN, SCRATCH, StrategyChoice, choose_strategy

log = logging.getLogger(__name__)

NO_LIMIT_GB = 1e6  # size limit of the feature cache for finetune=auto if the config does not cache features


def resolve_strategy(
    config: Config, backbone: Backbone, datamodule: ImageDataModule, trainer: pl.Trainer, num_classes: int
) -> tuple[Strategy, StrategyChoice | None]:
    """Return the fine-tuning strategy of the config; with `auto`, choose one, and fit the head that it starts from.

    Returns:
        The strategy, and the choice of `finetune=auto`, with its measurements, or None.

    Raises:
        ModelError: the checkpoint to resume cannot be read, or is of a run with another `finetune`.
        HeadstartError: features cannot be computed; see `frozen_features`.
    """
    settings = config.finetune.settings()
    if config.finetune.name != AUTO:
        return _start(config, backbone, settings, datamodule, trainer, num_classes), None
    choice = choose_strategy(
        backbone,
        datamodule,
        trainer,
        checkpoint=config.ckpt_path,
        seed=config.seed,
        max_gb=config.features.max_gb if isinstance(config.features, CachedFeatures) else NO_LIMIT_GB,
    )
    for line in str(choice).splitlines():
        log.info(line)
    if choice.strategy == FROZEN:
        return Strategy(backbone, True, Finetuning()), choice
    if choice.strategy == SCRATCH:
        random = build_backbone(**asdict(config.model) | {"weights": None}).module
        at_once = Finetuning(**settings | {"head_epochs": 0, "unfrozen_by": 0.0})  # random weights need no protection
        return Strategy(backbone._replace(module=random), config.freeze, at_once), choice
    settings = finetune_preset(choice.strategy) | config.finetune.changed()
    if settings["head_epochs"] != AUTO:
        settings["head_epochs"] = min(settings["head_epochs"], config.max_epochs - 1)
    return _start(config, backbone, settings, datamodule, trainer, num_classes), choice


def _start(
    config: Config,
    backbone: Backbone,
    settings: dict[str, Any],
    datamodule: ImageDataModule,
    trainer: pl.Trainer,
    num_classes: int,
) -> Strategy:
    """Return the strategy with these settings of `Finetuning`, whose `head_epochs` may be auto.

    For auto, the head is fitted before the first epoch. Where that does not apply, it trains alone for an epoch, if
    there are more. A resumed run does what its checkpoint says.
    """
    if settings["head_epochs"] != AUTO:
        return Strategy(backbone, config.freeze, Finetuning(**settings))
    if config.ckpt_path is not None:
        saved = read_checkpoint(config.ckpt_path)["hyper_parameters"].get("fitted_head")
        head = FittedHead(saved) if saved else None
    else:
        head = _fit_head(config, backbone, datamodule, trainer, num_classes)
    finetuning = Finetuning(**settings | {"head_epochs": _head_epochs(config, head)})
    return Strategy(backbone, config.freeze, finetuning, head)


def _head_epochs(config: Config, fitted: FittedHead | None) -> int:
    return 0 if fitted else min(1, config.max_epochs - 1)


def _fit_head(
    config: Config, backbone: Backbone, datamodule: ImageDataModule, trainer: pl.Trainer, num_classes: int
) -> FittedHead | None:
    """Fit the head for `finetune.head_epochs=auto`, or return None and log why it is not."""
    train, head = datamodule.splits["train"], None
    reasons = {
        f"head={config.head.name} is not linear": config.head.name != "linear",
        "features=off caches none": not isinstance(config.features, CachedFeatures),
        "trainer.limit_*_batches leaves images out, or trainer.strategy starts its processes by spawn or fork": (
            not sees_all_images(trainer)
        ),
        "data.group_* leaves nothing to cross-validate with": number_of_folds(train.labels, train.groups) < 2,
        "lr=auto measures how fast a head with random weights learns": (
            isinstance(config.optimizer, Gradient) and config.optimizer.lr == AUTO
        ),
    }
    reason = next((reason for reason, applies in reasons.items() if applies), "the features exceed features.max_gb")
    if not any(reasons.values()):
        assert isinstance(config.features, CachedFeatures)
        # A sampler that draws all classes equally often weighs them, too.
        balanced = "balanced" if config.data.sampling == "balanced" else config.loss.class_weights
        weights = class_weights(balanced, train, num_classes)
        head = fit_first_head(
            backbone,
            datamodule,
            trainer,
            class_weights=torch.ones(num_classes) if weights is None else weights,
            label_smoothing=config.loss.label_smoothing,
            engine=config.features.engine,
            max_gb=config.features.max_gb,
        )
    if head is None:
        log.info("finetune.head_epochs=auto: %d, as the head cannot be fitted: %s", _head_epochs(config, head), reason)
    return head
