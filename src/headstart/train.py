"""run(config): one experiment, from images to figures. Read top to bottom, it tells the whole story."""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from headstart.answers import KEPT, evaluations
from headstart.artifact import read_checkpoint
from headstart.auto import Auto
from headstart.backbones import build_backbone, check_input
from headstart.bottleneck import Circumstances, verdict
from headstart.callbacks import ClassCurves, build_callbacks, build_loggers
from headstart.checkpoints import KeepBest, check_checkpoint, complete_checkpoints, without_backbone
from headstart.choosing import FROZEN, SCRATCH, choose
from headstart.classifier import TransferClassifier
from headstart.config import CachedFeatures, Config, to_yaml
from headstart.config.composing import finetune_preset
from headstart.config.ranges import AUTO
from headstart.data import open_source
from headstart.data.decoded import decoded_images
from headstart.data.mixing import build_mixing
from headstart.data.module import ImageDataModule, class_weights, make_splits
from headstart.data.transforms import evaluation_transform, training_transform
from headstart.data.workers import default_workers
from headstart.features.digests import module_sha256
from headstart.features.frozen import frozen_features
from headstart.finetuning import Finetuning
from headstart.heads import build_head
from headstart.monitor import check_monitor
from headstart.optimization import build_optimizer, build_schedule, schedule_length
from headstart.outputs import KeepOutputs, figures_of_splits, parameter_counts
from headstart.record import split_sha256, split_table
from headstart.report import report_run
from headstart.report.scalars import write_hyperparameters, write_layout
from headstart.report.statistics import fitted_temperature
from headstart.run_folder import check_folder, record_answers, record_end, record_model, record_range_test, record_start
from headstart.speed import Speed
from headstart.table import show_run
from headstart.trainer import build_trainer, lost_processes, quiet_lightning, sees_all_images

log = logging.getLogger(__name__)
NO_LIMIT_GB = 1e6  # of features that are kept for finetune=auto where no others are


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

    source = open_source(config.data.source, **config.data.of_source())
    for note in source.notes:
        log.info(note)
    splits = make_splits(source, **config.data.of_splits())
    split = split_table(splits, source.class_names)

    pl.seed_everything(config.seed, verbose=False)  # of the head's initial weights
    backbone = build_backbone(**asdict(config.model))
    preprocessing = backbone.preprocessing.changed(**config.data.of_preprocessing())
    check_input(backbone, preprocessing.crop)
    if config.freeze is True and config.model.weights is None:
        log.warning("the backbone is frozen at random weights: use freeze=false, or model.weights=default")
    data = ImageDataModule(
        splits,
        training=training_transform(preprocessing, **config.augment.of_images()),
        evaluation=evaluation_transform(preprocessing),
        batch_size=auto.first_batch_size,
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
        balanced=config.data.sampling == "balanced",
    )
    freeze, finetuning, choice = config.freeze, Finetuning(**config.finetune.settings()), None
    if config.finetune.name == AUTO:
        bars = config.trainer.enable_progress_bar and trainer.is_global_zero
        choice = choose(
            backbone,
            data,
            trainer,
            checkpoint=config.ckpt_path,
            seed=config.seed,
            max_gb=config.features.max_gb if isinstance(config.features, CachedFeatures) else NO_LIMIT_GB,
            show_progress=bars,
        )
        for line in str(choice).splitlines():
            log.info(line)
        if choice.strategy == FROZEN:
            freeze = True
        elif choice.strategy == SCRATCH:
            backbone = backbone._replace(module=build_backbone(**asdict(config.model) | {"weights": None}).module)
        else:
            finetuning = Finetuning(**finetune_preset(choice.strategy) | config.finetune.changed())
            finetuning = replace(finetuning, head_epochs=min(finetuning.head_epochs, config.epochs - 1))
    optimizer = asdict(config.optimizer) | {"lr": auto.first_lr}
    classifier = TransferClassifier(
        backbone.module,
        build_head(num_features=backbone.num_features, num_classes=len(source.class_names), **asdict(config.head)),
        source.class_names,
        freeze=freeze,
        finetuning=finetuning,
        optimizer=partial(build_optimizer, **optimizer),
        scheduler=partial(build_schedule, **asdict(config.scheduler)),
        monitor=config.monitor,
        mixing=build_mixing(len(source.class_names), mixup=config.augment.mixup, cutmix=config.augment.cutmix),
        label_smoothing=config.loss.label_smoothing,
        class_weights=class_weights(config.loss.class_weights, splits["train"], len(source.class_names)),
        description={
            "model": backbone.description,
            "head": asdict(config.head),
            "class_names": list(source.class_names),
            "preprocessing": asdict(preprocessing),
            "freeze": freeze,
            "finetune": asdict(finetuning) if finetuning != Finetuning() else None,
            "chosen": asdict(choice) if choice else None,
            "backbone_sha256": module_sha256(backbone.module) if freeze is True else None,
            "optimizer": optimizer,
            "batch_size": data.batch_size,
            "scheduler": asdict(config.scheduler)
            | schedule_length(
                config.scheduler.name,
                config.epochs,
                images_a_step=data.batch_size * config.trainer.accumulate_grad_batches * trainer.world_size,
                thaws=finetuning.thawed_by > 0,
            ),
            "monitor": config.monitor,
            "ema": config.callbacks.ema,
            "split": split_sha256(split),
            "data": config.data.told(),
        },
    )
    check_monitor(config.monitor, classifier.logged_metrics)
    if config.ckpt_path is not None:
        check_checkpoint(config.ckpt_path, classifier)

    features_start = time.perf_counter()
    features = None
    if (
        freeze is True
        and isinstance(config.features, CachedFeatures)
        and sees_all_images(trainer)
        and classifier.mixing is None  # images, not features
    ):
        features = frozen_features(
            backbone.module,
            data,
            num_features=backbone.num_features,
            description={name: classifier.hparams[name] for name in ("model", "backbone_sha256")},
            device=trainer.strategy.root_device,
            precision=trainer.precision_plugin,
            engine=config.features.engine,
            views=min(config.features.views, config.epochs) if config.augment.is_random else 1,
            max_gb=config.features.max_gb,
            show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
        )
    decoded = None
    if config.data.cache == "decoded" and not features and sees_all_images(trainer):
        decoded = decoded_images(
            data,
            preprocessing,
            config.augment.of_images(),
            device=trainer.strategy.root_device,
            max_gb=config.data.cache_gb,
            show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
        )
    batches = features.data if features else decoded or data
    auto.measure(
        classifier,
        data,
        batches,
        trainer,
        accumulated=config.trainer.accumulate_grad_batches,
        image_size=preprocessing.crop,
        seed=config.seed,
        show_progress=config.trainer.enable_progress_bar,
    )
    if config.compile and features is None:
        backbone.module.compile()  # in place: the names in checkpoints stay what they are
    # A job of a sweep is resumed by the sweep alone: its config.yaml is that of the whole job.
    record_start(folder, to_yaml(replace(config, ckpt_path=None) if sweep else config), split)
    record_range_test(folder, auto.range_test)
    write_layout(loggers)
    fit_start = time.perf_counter()
    try:
        with without_backbone(classifier, aside=features is not None), lost_processes(folder):
            trainer.fit(classifier, batches, ckpt_path=config.ckpt_path, weights_only=True)
            fit_end = time.perf_counter()
            best = restore_best(trainer, classifier)
            figures, outputs = figures_of_splits(trainer, classifier, batches, keep, kept=KEPT)
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
        **(choice.metrics if choice else {}),
        **({"features/computed": features.computed, "features/cached": features.cached} if features else {}),
        **({"time/features_s": round(fit_start - features_start, 3)} if features else {}),
        **speed.figures,
        "time/fit_s": round(fit_end - fit_start, 3),
        "time/total_s": round(time.perf_counter() - start, 3),
    }
    temperature = fitted_temperature(outputs["val"].logits, splits["val"].labels) if "val" in outputs else 1.0
    answers = evaluations(outputs, splits, figures, class_names=source.class_names, temperature=temperature)
    about = {"licence": backbone.licence, "temperature": temperature, "metrics": metrics}
    record_model(folder, classifier, about)
    record_answers(folder, answers, class_curves.epochs)
    write_hyperparameters(loggers, asdict(config), metrics)
    record_end(folder, metrics)
    if trainer.is_global_zero and not sweep:  # which has a table of its own
        show_run(metrics, folder)
    if trainer.is_global_zero and speed.measures:
        log.info(verdict(speed.measures, circumstances(config, data, trainer, freeze, cached=features is not None)))
    if not answers:
        log.info("there is no report: only some of the images were evaluated")
    elif config.report is True or (config.report == "auto" and not sweep):
        report_run(folder, data)
    return metrics[config.monitor]


def restore_best(trainer: pl.Trainer, classifier: TransferClassifier) -> int | None:
    """Loads the best checkpoint, if the run keeps one; gives its epoch, counted from 1."""
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, KeepBest) and keeper.best_model_path:
            checkpoint = read_checkpoint(keeper.best_model_path)
            classifier.on_load_checkpoint(checkpoint)
            classifier.load_state_dict(checkpoint["state_dict"])
            return int(checkpoint["epoch"]) + 1
    return None


def circumstances(
    config: Config, data: ImageDataModule, trainer: pl.Trainer, freeze: bool | str, *, cached: bool
) -> Circumstances:
    """What the run's speed depends on, for its verdict."""
    cuda = trainer.strategy.root_device.type == "cuda"
    full = config.trainer.precision == "32-true"
    return Circumstances(
        batch_size=data.batch_size,
        train_size=len(data.splits["train"]),
        num_workers=data.num_workers,
        most_workers=default_workers(),
        files=not isinstance(data.splits["train"].images, np.ndarray),
        decoded=config.data.cache == "decoded",
        tuned=config.data.batch_size == AUTO,
        on_cpu=trainer.strategy.root_device.type == "cpu",
        gpu=torch.cuda.is_available(),
        half=("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if cuda and full else None,
        cached=cached,
        frozen=freeze is True and not (config.augment.mixup or config.augment.cutmix),
        pretrained=config.model.weights is not None and freeze is not True,
    )
