"""run(config): one experiment, from images to figures. Read top to bottom, it tells the whole story."""

from __future__ import annotations

import gc
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import lightning.pytorch as pl

from headstart.cache.build import build_batches
from headstart.config.check import to_yaml
from headstart.config.schema import Config
from headstart.data.build import build_data, open_images
from headstart.data.splits import split_table
from headstart.models.build import open_backbone
from headstart.report.run_report import report_run
from headstart.runs.folder import (
    check_folder,
    record_answers,
    record_end,
    record_model,
    record_range_test,
    record_start,
)
from headstart.runs.predictions import KEPT, evaluations
from headstart.training.bottleneck import verdict
from headstart.training.build import build_classifier, circumstances, strategy_of
from headstart.training.calibration import fitted_temperature
from headstart.training.callbacks import ClassCurves, build_callbacks
from headstart.training.checkpoints import (
    check_checkpoint,
    complete_checkpoints,
    restore_best,
    without_backbone,
)
from headstart.training.launch import check_processes
from headstart.training.loggers import build_loggers, write_hyperparameters, write_layout
from headstart.training.speed import Speed
from headstart.training.split_metrics import KeepOutputs, figures_of_splits, parameter_counts
from headstart.training.trainer import build_trainer, check_monitor, quiet_lightning, resumable
from headstart.training.tuning.auto import Auto
from headstart.utils.tables import show_run

log = logging.getLogger(__name__)


def run(config: Config, folder: Path, *, sweep: bool = False) -> float:
    """Trains, tests and records a classifier.

    Args:
        config: the checked control panel.
        folder: the run folder; made if it is not there.
        sweep: whether this is a job of a sweep, of which `report=auto` reports on the best alone.

    Returns:
        The monitored value of the best checkpoint, for sweepers.

    Raises:
        HeadstartError: data, weights, a checkpoint or a device is not there or does not fit; the message says
            what to do.
    """
    start = time.perf_counter()
    gc.collect()  # Lightning's objects refer to each other in circles: frees the networks of a sweep's last job
    quiet_lightning()
    check_folder(folder, config.ckpt_path)
    loggers = build_loggers(folder, **asdict(config.logger))
    callbacks = build_callbacks(
        folder,
        monitor=config.monitor,
        seed=config.seed,
        resumed=config.ckpt_path,
        progress=config.trainer.enable_progress_bar,
        **(asdict(config.callbacks) | ({} if loggers else {"learning_rate": False})),
    )
    keep, class_curves, speed = KeepOutputs(), ClassCurves(), Speed()
    auto = Auto(config.optimizer.lr, config.data.batch_size, config.ckpt_path)
    trainer = build_trainer([keep, class_curves, speed, auto, *callbacks], loggers, asdict(config.trainer))

    source, splits = open_images(config)
    check_processes(os.environ, trainer.world_size, {split: len(samples) for split, samples in splits.items()})
    split = split_table(splits, source.class_names)
    pl.seed_everything(config.seed, verbose=False)  # of the head's initial weights
    backbone = open_backbone(config)
    data = build_data(
        config, splits, backbone.preprocessing, batch_size=auto.first_batch_size, processes=trainer.num_devices
    )
    strategy, choice = strategy_of(config, backbone, data, trainer)
    backbone = strategy.backbone
    classifier = build_classifier(config, source, data, strategy, trainer, choice=choice, split=split, lr=auto.first_lr)
    check_monitor(config.monitor, classifier.logged_metrics)
    done = check_checkpoint(config.ckpt_path, classifier) if config.ckpt_path is not None else 0

    batches = build_batches(config, classifier.hparams, data, strategy, trainer, epochs_done=done)
    head_only = batches.head_only
    auto.measure(
        classifier,
        data,
        batches.evaluation,
        trainer,
        choice=choice,
        accumulated=config.trainer.accumulate_grad_batches,
        image_size=backbone.preprocessing.crop,
        seed=config.seed,
        show_progress=config.trainer.enable_progress_bar,
    )
    if config.compile and not head_only:
        classifier.compile_backbone()
    # A job of a sweep is resumed by the sweep alone: its config.yaml is that of the whole job.
    record_start(folder, to_yaml(replace(config, ckpt_path=None) if sweep else config), split)
    record_range_test(folder, auto.range_test.csv() if auto.range_test else None)
    write_layout(loggers)
    fit_start = time.perf_counter()
    try:
        with without_backbone(classifier, aside=head_only), resumable(folder):
            trainer.fit(classifier, batches.training, ckpt_path=config.ckpt_path, weights_only=True)
            fit_end = time.perf_counter()
            best = restore_best(trainer, classifier)
            figures, outputs = figures_of_splits(trainer, classifier, batches.evaluation, keep, kept=KEPT)
    finally:
        complete_checkpoints(folder / "checkpoints", classifier)
    metrics = {
        **figures,
        **parameter_counts(classifier),
        "data/num_classes": len(source.class_names),
        **{f"data/{split}_size": len(samples) for split, samples in splits.items()},
        "epochs/run": trainer.current_epoch,
        **({"epochs/best": best} if best else {}),
        **auto.metrics,
        **batches.metrics,
        **speed.figures,
        "time/fit_s": round(fit_end - fit_start, 3),
        "time/total_s": round(time.perf_counter() - start, 3),
    }
    temperature = fitted_temperature(outputs["val"].logits, splits["val"].labels) if "val" in outputs else 1.0
    answers = evaluations(outputs, splits, figures, class_names=source.class_names, temperature=temperature)
    about = {"licence": backbone.licence, "temperature": temperature, "metrics": metrics}
    with resumable(folder):
        record_model(folder, classifier.state_dict(), {**classifier.hparams, **about})
        record_answers(folder, answers, class_curves.epochs)
        write_hyperparameters(loggers, asdict(config), metrics)
        record_end(folder, metrics)
    if trainer.is_global_zero and not sweep:  # which has a table of its own
        show_run(metrics, folder)
    if trainer.is_global_zero and speed.measures:
        now = circumstances(config, data, trainer, strategy, cached=head_only, decoded=batches.decoded)
        log.info(verdict(speed.measures, now))
    if not answers:
        log.info("there is no report: only some of the images were evaluated")
    elif config.report is True or (config.report == "auto" and not sweep):
        report_run(folder, data)
    return metrics[config.monitor]
