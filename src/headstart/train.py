"""Training run, from a checked config to metrics, model folder and report."""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_only

from headstart.cache.build import build_batches
from headstart.checks.before_training import check_files
from headstart.config.check import to_yaml
from headstart.config.schema import Config
from headstart.data.build import build_data, open_images
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages
from headstart.data.splits import split_table
from headstart.models.backbone import Backbone
from headstart.models.build import open_backbone
from headstart.report.run_report import report_run, with_folded
from headstart.runs.folder import check_folder, record_end, record_evaluations, record_model, record_start
from headstart.training.build import RunCallbacks, build_classifier, open_trainer
from headstart.training.checkpoints import check_checkpoint, head_only_checkpoints, restore_best
from headstart.training.classifier import TransferClassifier
from headstart.training.launch import check_processes
from headstart.training.loggers import write_hyperparameters, write_layout
from headstart.training.profiler import describe_speed
from headstart.training.results import Results, evaluate_splits
from headstart.training.split_metrics import parameter_counts
from headstart.training.strategy import resolve_strategy
from headstart.training.trainer import NO_VAL, quiet_lightning, resumable
from headstart.utils.errors import ConfigError
from headstart.utils.tables import show_run

log = logging.getLogger(__name__)


def run(
    config: Config, folder: Path, *, sweep: bool = False, folds: Results | None = None, stop_after: int | None = None
) -> float:
    """Train and evaluate a classifier, and write the run folder.

    Args:
        config: the checked config.
        folder: the run folder; it is created if it does not exist.
        sweep: whether this is a job of a sweep or a fold; then `report=auto` writes no report for it.
        folds: the results of a cross-validation at these settings, which are added to those of this run.
        stop_after: the number of epochs after which training ends; the schedule is still for `epochs`. None trains all.

    Returns:
        The value of the monitored metric for the best checkpoint, as Hydra's sweepers expect it; NaN if it is of val,
        and there is no val split.

    Raises:
        HeadstartError: what stops the run, such as an image that cannot be read or a full disk; see `utils.errors`.
    """
    trainer, callbacks = start_run(config, folder, stop_after)
    images = open_images(config.data)
    check_images(images, trainer)
    if folds is None:  # a cross-validation is checked before its folds
        check_files(config, images, folder, sweep=sweep)
    if sweep:
        check_objective(config, images)
    backbone = open_backbone(config)
    datamodule = build_data(config, images, backbone.preprocessing, trainer.num_devices)
    strategy, choice = resolve_strategy(config, backbone, datamodule, trainer, len(images.class_names))
    split = split_table(images)
    classifier = build_classifier(config, images, strategy, choice, split)
    callbacks.tuner.apply(classifier, datamodule, trainer)
    epochs_done = check_checkpoint(config.ckpt_path, classifier) if config.ckpt_path is not None else 0
    batches = build_batches(config, classifier.hparams, datamodule, strategy, trainer, epochs_done=epochs_done)
    callbacks.tuner.measure(classifier, datamodule, batches, trainer)
    if config.compile and not batches.head_only:
        classifier.compile_backbone()
    record_settings(config, folder, split, trainer, callbacks, sweep)
    with head_only_checkpoints(folder, classifier, batches.head_only), resumable(folder):
        trainer.fit(classifier, batches.training, ckpt_path=config.ckpt_path, weights_only=True)
        epochs = restore_best(trainer, classifier)
        results = evaluate_splits(trainer, classifier, batches, images, callbacks.outputs)
    if folds is not None:
        results = results.with_folds(folds)
        callbacks.timings.add_earlier(folds.metrics["time/folds_s"])
    metrics = {**results.metrics, **parameter_counts(classifier), **images.metrics, **epochs}
    metrics |= {**(choice.metrics if choice else {}), **strategy.metrics, **batches.metrics, **callbacks.metrics}
    record_results(config, folder, classifier, backbone, results, metrics, trainer, callbacks)
    show_results(metrics, folder, describe_speed(callbacks.profiler, config, datamodule, strategy), sweep)
    report_results(config, folder, images, datamodule, results, sweep)
    return metrics.get(config.monitor, math.nan)


def start_run(config: Config, folder: Path, stop_after: int | None = None) -> tuple[pl.Trainer, RunCallbacks]:
    """Check the run folder, build the Trainer and seed all random number generators.

    Raises:
        ConfigError: the folder holds another run, or this machine does not support the trainer's settings.
        ModelError: the checkpoint to resume cannot be read.
    """
    gc.collect()  # Lightning's objects are in reference cycles: frees the networks of a sweep's previous job
    quiet_lightning()
    check_folder(folder, config.ckpt_path)
    trainer, callbacks = open_trainer(config, folder, stop_after)
    pl.seed_everything(config.seed, verbose=False)  # for the head's initial weights
    return trainer, callbacks


def check_images(images: LabelledImages, trainer: pl.Trainer) -> None:
    """Log the notes on the images, and check that every process gets some images of each split.

    Raises:
        ConfigError: a split has fewer images than there are processes, or the processes do not train as one.
    """
    for note in images.notes:
        log.info(note)
    sizes = {split: len(samples) for split, samples in images.splits.items()}
    check_processes(os.environ, trainer.world_size, sizes)


def check_objective(config: Config, images: LabelledImages) -> None:
    """Check that a job of a sweep measures the metric by which jobs are compared; a fold is compared by none.

    Raises:
        ConfigError: the metric is one of val, and there is no val split.
    """
    if config.data.fold is None and config.objective.startswith("val/") and "val" not in images.splits:
        raise ConfigError(
            f"a sweep compares its jobs by monitor={config.objective}, and {NO_VAL}: set data.val_fraction, or compare "
            f"cross-validations by folds=5."
        )


def record_settings(
    config: Config, folder: Path, split: str, trainer: pl.Trainer, callbacks: RunCallbacks, sweep: bool
) -> None:
    """Write config, environment, split and range test to the run folder, before training begins."""
    # Sweeps and cross-validations set ckpt_path themselves, to resume their runs, so it is left out of config.yaml.
    settings = replace(config, ckpt_path=None) if sweep or config.cross_validates else config
    range_test = callbacks.tuner.range_test
    record_start(folder, to_yaml(settings), split, range_test.csv() if range_test else None)
    write_layout(trainer.loggers)


def record_results(
    config: Config,
    folder: Path,
    classifier: TransferClassifier,
    backbone: Backbone,
    results: Results,
    metrics: Mapping[str, float],
    trainer: pl.Trainer,
    callbacks: RunCallbacks,
) -> None:
    """Write the model folder, the predictions and metrics.json to the run folder.

    metrics.json is written last: a run folder that has one is complete.

    Raises:
        DiskError: the disk is full.
        ProcessError: another process of the run has ended.
    """
    outcome = {"licence": backbone.licence, "temperature": results.temperature, "metrics": metrics}
    with resumable(folder):
        record_model(folder, classifier.state_dict(), {**classifier.hparams, **outcome})
        record_evaluations(folder, results.evaluations, callbacks.class_curves.epochs)
        write_hyperparameters(trainer.loggers, asdict(config), metrics)
        record_end(folder, metrics)


@rank_zero_only
def show_results(metrics: Mapping[str, float], folder: Path, speed: str, sweep: bool) -> None:
    """Print a table of the results, unless this is a job of a sweep, and log the training speed."""
    if not sweep:  # a sweep prints a table of its own
        show_run(metrics, folder)
    if speed:
        log.info(speed)


def report_results(
    config: Config, folder: Path, images: LabelledImages, datamodule: ImageDataModule, results: Results, sweep: bool
) -> None:
    """Write the report, if the config asks for one and there are predictions for all images of a split."""
    if images.splits.keys() == {"train"} and not results.evaluations:
        log.info("there is no report: it is about images of test or val, and there are none")
    elif not results.evaluations:
        log.info("there is no report: only some of the images were evaluated")
    elif config.report is True or (config.report == "auto" and not sweep):
        report_run(folder, with_folded(datamodule, images))
