"""Build the Trainer and the classifier of a run from its config."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headstart.config.optimizer_schema import LBFGS
from headstart.config.schema import Config
from headstart.data.augmentation import build_mixing
from headstart.data.datamodule import class_weights
from headstart.data.dataset import LabelledImages
from headstart.data.splits import split_sha256
from headstart.models.head import build_head
from headstart.models.unfreezing import Finetuning, Strategy
from headstart.training.callbacks import (
    AveragedWeights,
    ClassCurves,
    LastEpoch,
    ProgressBar,
    SeedEpochs,
    StopAfter,
    StopEarly,
    Timings,
)
from headstart.training.checkpoints import BestCheckpoint, LastCheckpoint
from headstart.training.classifier import TransferClassifier
from headstart.training.fitted_head.classifier import FittedHeadClassifier
from headstart.training.loggers import build_loggers
from headstart.training.optimization import build_optimizer, build_schedule, schedule_hyperparameters
from headstart.training.profiler import TrainingProfiler
from headstart.training.split_metrics import OutputCollector
from headstart.training.trainer import build_trainer, check_monitor, choose_monitor
from headstart.training.tuning.choose_strategy import StrategyChoice
from headstart.training.tuning.tuner import TUNED, Tuner
from headstart.utils.hashing import module_sha256
from headstart.utils.metrics import direction


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


def open_trainer(config: Config, folder: Path, stop_after: int | None = None) -> tuple[pl.Trainer, RunCallbacks]:
    """Build Lightning's Trainer with the loggers and callbacks of a run, and return those callbacks that a run reads.

    Args:
        config: the checked config.
        folder: the run folder.
        stop_after: the number of epochs after which training ends, in a schedule for all; None trains all of them.

    Raises:
        ConfigError: this machine does not support the trainer's settings.
        ModelError: the checkpoint to resume cannot be read.
    """
    settings = {**asdict(config.trainer), "max_epochs": config.max_epochs}
    tuner = Tuner(asdict(config.optimizer), config.data.batch_size, config.ckpt_path)
    run_callbacks = RunCallbacks(OutputCollector(), ClassCurves(), LastEpoch(), TrainingProfiler(), tuner, Timings())
    loggers = build_loggers(folder, **asdict(config.logger))
    callbacks = [*run_callbacks, *build_callbacks(config, folder)]
    if stop_after is not None:
        callbacks.append(StopAfter(stop_after))
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
        callbacks += [BestCheckpoint(checkpoints, monitor, resumed), LastCheckpoint(checkpoints)]
    return callbacks


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
        ConfigError: the monitored metric is not measured, or a setting needs a val split and there is none.
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
        monitor=choose_monitor(config, images.splits),
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
            | schedule_hyperparameters(config.scheduler.name, config.max_epochs, unfreezes=finetuning.unfrozen_by > 0),
            "monitor": config.monitor,
            "ema": config.callbacks.ema,
            "split": split_sha256(split),
            "data": config.data.description(),
        },
    )
    check_monitor(config.monitor, classifier.logged_metrics)
    return classifier
