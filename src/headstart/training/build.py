"""The classifier and how it trains, as the control panel asks for it."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial

import lightning.pytorch as pl
import torch

from headstart.config.compose import finetune_preset
from headstart.config.ranges import AUTO
from headstart.config.schema import CachedFeatures, Config
from headstart.data.augmentation import build_mixing
from headstart.data.datamodule import ImageDataModule, class_weights
from headstart.data.dataset import Source
from headstart.data.splits import split_sha256
from headstart.data.workers import default_workers
from headstart.models.backbone import Backbone, build_backbone
from headstart.models.head import build_head
from headstart.models.unfreezing import Finetuning, Strategy
from headstart.training.bottleneck import Circumstances
from headstart.training.checkpoints import STAGES
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer, build_schedule, schedule_length
from headstart.training.tuning.choose_strategy import FROZEN, SCRATCH, Choice, choose
from headstart.utils.hashing import module_sha256

log = logging.getLogger(__name__)

NO_LIMIT_GB = 1e6  # of features that are kept for finetune=auto where no others are


def strategy_of(
    config: Config, backbone: Backbone, data: ImageDataModule, trainer: pl.Trainer
) -> tuple[Strategy, Choice | None]:
    """The strategy that is asked for, or that suits the images; and of `finetune=auto`, the choice."""
    asked = Strategy(backbone, config.freeze, Finetuning(**config.finetune.settings()))
    if config.finetune.name != AUTO:
        return asked, None
    choice = choose(
        backbone,
        data,
        trainer,
        checkpoint=config.ckpt_path,
        seed=config.seed,
        max_gb=config.features.max_gb if isinstance(config.features, CachedFeatures) else NO_LIMIT_GB,
        show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
    )
    for line in str(choice).splitlines():
        log.info(line)
    if choice.strategy == FROZEN:
        return asked._replace(freeze=True, finetuning=Finetuning()), choice
    if choice.strategy == SCRATCH:
        random = build_backbone(**asdict(config.model) | {"weights": None}).module
        at_once = replace(asked.finetuning, head_epochs=0, thawed_by=0.0)  # there is nothing to spare
        return asked._replace(backbone=backbone._replace(module=random), finetuning=at_once), choice
    finetuning = Finetuning(**finetune_preset(choice.strategy) | config.finetune.changed())
    finetuning = replace(finetuning, head_epochs=min(finetuning.head_epochs, config.epochs - 1))
    return asked._replace(finetuning=finetuning), choice


def build_classifier(
    config: Config,
    source: Source,
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    choice: Choice | None,
    split: str,
    lr: float,
) -> TransferClassifier:
    """The network with its new head, and what a checkpoint says of how it was trained."""
    backbone, freeze, finetuning = strategy
    num_classes, optimizer = len(source.class_names), asdict(config.optimizer) | {"lr": lr}
    return TransferClassifier(
        backbone.module,
        build_head(num_features=backbone.num_features, num_classes=num_classes, **asdict(config.head)),
        source.class_names,
        preprocessing=backbone.preprocessing,
        freeze=freeze,
        finetuning=finetuning,
        optimizer=partial(build_optimizer, **optimizer),
        scheduler=partial(build_schedule, **asdict(config.scheduler)),
        monitor=config.monitor,
        mixing=build_mixing(num_classes, mixup=config.augment.mixup, cutmix=config.augment.cutmix),
        label_smoothing=config.loss.label_smoothing,
        class_weights=class_weights(config.loss.class_weights, data.splits["train"], num_classes),
        description={
            "model": backbone.description,
            "head": asdict(config.head),
            "class_names": list(source.class_names),
            "preprocessing": asdict(backbone.preprocessing),
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
            **({"stages": STAGES} if finetuning.has_stages else {}),
            "split": split_sha256(split),
            "data": config.data.told(),
        },
    )


def circumstances(
    config: Config, data: ImageDataModule, trainer: pl.Trainer, strategy: Strategy, *, cached: bool, decoded: bool
) -> Circumstances:
    """What the run's speed depends on, for its verdict."""
    cuda = trainer.strategy.root_device.type == "cuda"
    full = config.trainer.precision == "32-true"
    return Circumstances(
        batch_size=data.batch_size,
        train_size=len(data.splits["train"]),
        num_workers=data.num_workers,
        most_workers=default_workers(trainer.num_devices),
        decoded=decoded,
        wants_decoded=config.data.cache == "decoded",
        tuned=config.data.batch_size == AUTO,
        on_cpu=trainer.strategy.root_device.type == "cpu",
        gpu=torch.cuda.is_available(),
        half=("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if cuda and full else None,
        cached=cached,
        recomputed=strategy.freeze is True
        and not isinstance(config.features, CachedFeatures)
        and not (config.augment.mixup or config.augment.cutmix),  # which mix images, not features
        pretrained=config.model.weights is not None and strategy.freeze is not True,
        finetune=config.finetune.name != "none",
        sized=strategy.backbone.description.get("image_size") is None,
    )
