"""Build the Trainer and the classifier of a run from its config."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headstart.cache.build import sees_all_images
from headstart.config.compose import finetune_preset
from headstart.config.optimizer_schema import LBFGS, Gradient
from headstart.config.ranges import AUTO
from headstart.config.schema import CachedFeatures, Config
from headstart.data.augmentation import build_mixing
from headstart.data.datamodule import ImageDataModule, class_weights
from headstart.data.dataset import LabelledImages
from headstart.data.splits import split_sha256
from headstart.models.backbone import Backbone, build_backbone
from headstart.models.head import FittedHead, build_head
from headstart.models.model_folder import read_checkpoint
from headstart.models.unfreezing import Finetuning, Strategy
from headstart.training.callbacks import (
    AveragedWeights,
    ClassCurves,
    LastEpoch,
    ProgressBar,
    SeedEpochs,
    StopEarly,
    Timings,
)
from headstart.training.checkpoints import BestCheckpoint, LastCheckpoint
from headstart.training.classifier import TransferClassifier
from headstart.training.fitted_head.classifier import FittedHeadClassifier
from headstart.training.fitted_head.path import number_of_folds
from headstart.training.fitted_head.start import fit_first_head
from headstart.training.loggers import build_loggers
from headstart.training.optimization import build_optimizer, build_schedule, schedule_hyperparameters
from headstart.training.profiler import TrainingProfiler
from headstart.training.split_metrics import OutputCollector
from headstart.training.trainer import build_trainer, check_monitor
from headstart.training.tuning.choose_strategy import FROZEN, SCRATCH, StrategyChoice, choose_strategy
from headstart.training.tuning.tuner import TUNED, Tuner
from headstart.utils.hashing import module_sha256
from headstart.utils.metrics import direction

log = logging.getLogger(__name__)

NO_LIMIT_GB = 1e6  # size limit of the feature cache for finetune=auto if the config does not cache features


class RunCallbacks(NamedTuple):
    """The callbacks whose results a run reads.

    Attributes:
        outputs: collects the logits and features of an evaluation.
        class_curves: collects the validation accuracy of each class by epoch.
        last_epoch: keeps the validation metrics of the last epoch.
        profiler: measures the training speed.
        tuner: determines the learning rate and the batch size.
        timings: measures the time of the run and of `fit`.
    """

    outputs: OutputCollector
    class_curves: ClassCurves
    last_epoch: LastEpoch
    profiler: TrainingProfiler
    tuner: Tuner
    timings: Timings

    @property
    def metrics(self) -> dict[str, float]:
        """Return the last epoch's metrics, tuned values, the fractions of training time, and the seconds up to now."""
        return {**self.last_epoch.metrics, **self.tuner.metrics, **self.profiler.metrics, **self.timings.metrics}


def open_trainer(config: Config, folder: Path) -> tuple[pl.Trainer, RunCallbacks]:
    """Build Lightning's Trainer with the loggers and callbacks of a run, and return those callbacks that a run reads.

    Raises:
        ConfigError: this machine does not support the trainer's settings.
        ModelError: the checkpoint to resume cannot be read.
    """
    optimizer, settings = config.optimizer, asdict(config.trainer)
    tuner = Tuner(asdict(optimizer), config.data.batch_size, config.ckpt_path)
    if isinstance(optimizer, LBFGS):
        settings["max_epochs"] = optimizer.max_iter
    run_callbacks = RunCallbacks(OutputCollector(), ClassCurves(), LastEpoch(), TrainingProfiler(), tuner, Timings())
    loggers = build_loggers(folder, **asdict(config.logger))
    callbacks = [*run_callbacks, *build_callbacks(config, folder)]
    return build_trainer(callbacks, loggers, settings), run_callbacks


def build_callbacks(config: Config, folder: Path) -> list[pl.Callback]:
    """Build the callbacks that the config chooses, and the one that seeds every epoch."""
    settings, monitor, fitted = config.callbacks, config.monitor, isinstance(config.optimizer, LBFGS)
    callbacks: list[pl.Callback] = [SeedEpochs(config.seed)]
    if config.trainer.enable_progress_bar:
        callbacks.append(ProgressBar(leave=False))
    if settings.early_stopping is not None and not fitted:
        stopping = {**asdict(settings.early_stopping), "mode": direction(monitor)}
        callbacks.append(StopEarly(monitor, check_on_train_epoch_end=True, **stopping))
    if settings.learning_rate and not fitted and (config.logger.tensorboard or config.logger.csv):
        callbacks.append(LearningRateMonitor(logging_interval="epoch"))
    if settings.ema is not None:
        # Lightning's EMAWeightAveraging changes frozen weights by rounding errors; torch's lerp keeps them bit for bit.
        average = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        callbacks.append(AveragedWeights(multi_avg_fn=average))
    if settings.checkpoint:
        # BestCheckpoint comes first, so that the state in last.ckpt includes the best checkpoint.
        checkpoints, resumed = folder / "checkpoints", Path(config.ckpt_path) if config.ckpt_path else None
        best = BestCheckpoint(checkpoints, None if fitted else monitor, resumed)  # an optimum is the best there is
        callbacks += [best, LastCheckpoint(checkpoints)]
    return callbacks


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
        settings["head_epochs"] = min(settings["head_epochs"], config.epochs - 1)
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
    return 0 if fitted else min(1, config.epochs - 1)


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


def build_classifier(
    config: Config, images: LabelledImages, strategy: Strategy, choice: StrategyChoice | None, split: str
) -> TransferClassifier:
    """Build the classifier with a new head; its hyperparameters describe how it is trained.

    Its learning rate, weight decay and batch size are None until `Tuner.apply` sets them.

    Args:
        config: the checked config.
        images: the labelled images of all splits.
        strategy: the backbone, and which part of it is trained in which epoch.
        choice: the choice of `finetune=auto`, if any.
        split: which image is in which split, as `split_table` returns it.

    Raises:
        ConfigError: the monitored metric is not measured.
        ModelError: `freeze` names no block of the backbone.
    """
    backbone, freeze, finetuning, fitted_head = strategy
    num_classes, optimizer = len(images.class_names), asdict(config.optimizer)
    optimizer |= {name: None for name in TUNED if name in optimizer}
    fitted = isinstance(config.optimizer, LBFGS)
    head = build_head(num_features=backbone.num_features, num_classes=num_classes, **asdict(config.head))
    if fitted_head is not None and fitted_head.weights is not None:
        head.load_state_dict(fitted_head.weights)
    classifier = (FittedHeadClassifier if fitted else TransferClassifier)(
        backbone.module,
        head,
        images.class_names,
        preprocessing=backbone.preprocessing,
        freeze=freeze,
        finetuning=finetuning,
        optimizer=partial(build_optimizer, **optimizer),
        scheduler=partial(build_schedule, **asdict(config.scheduler)),
        monitor=config.monitor,
        mixing=build_mixing(num_classes, mixup=config.loss.mixup, cutmix=config.loss.cutmix),
        label_smoothing=config.loss.label_smoothing,
        class_weights=class_weights(config.loss.class_weights, images.splits["train"], num_classes),
        description={
            "model": backbone.description,
            "head": asdict(config.head),
            "class_names": list(images.class_names),
            "preprocessing": asdict(backbone.preprocessing),
            "freeze": freeze,
            "finetune": asdict(finetuning) if finetuning != Finetuning() else None,
            "chosen": asdict(choice) if choice else None,
            "fitted_head": fitted_head.description if fitted_head else None,
            "backbone_sha256": module_sha256(backbone.module) if freeze is True else None,
            "optimizer": optimizer,
            "batch_size": None,
            "scheduler": asdict(config.scheduler)
            | schedule_hyperparameters(config.scheduler.name, config.epochs, unfreezes=finetuning.unfrozen_by > 0),
            "monitor": config.monitor,
            "ema": config.callbacks.ema,
            "split": split_sha256(split),
            "data": config.data.description(),
        },
    )
    check_monitor(config.monitor, classifier.logged_metrics)
    return classifier
