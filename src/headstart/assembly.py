"""The objects of a run, as the control panel asks for them; nothing below knows the panel."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import lightning.pytorch as pl
import torch

from headstart.cache.decoded_images import DecodedDataModule, decoded_images
from headstart.cache.features import FrozenFeatures, frozen_features
from headstart.config.compose import finetune_preset
from headstart.config.ranges import AUTO
from headstart.config.schema import CachedFeatures, Config
from headstart.data.augmentation import build_mixing, training_transform
from headstart.data.build import open_source
from headstart.data.datamodule import ImageDataModule, class_weights
from headstart.data.dataset import Samples, Source
from headstart.data.preprocessing import evaluation_transform
from headstart.data.splits import make_splits, split_sha256
from headstart.data.workers import default_workers
from headstart.models.backbone import Backbone, build_backbone, check_input
from headstart.models.head import build_head
from headstart.models.unfreezing import Finetuning
from headstart.training.bottleneck import Circumstances
from headstart.training.checkpoints import STAGES
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer, build_schedule, schedule_length
from headstart.training.trainer import sees_all_images
from headstart.training.tuning.choose_strategy import FROZEN, SCRATCH, Choice, choose
from headstart.utils.hashing import module_sha256

log = logging.getLogger(__name__)
NO_LIMIT_GB = 1e6  # of features that are kept for finetune=auto where no others are


class Strategy(NamedTuple):
    """What of a network trains, and how.

    Attributes:
        backbone: with its pretrained weights, or with random ones where `finetune=auto` finds those useless.
        freeze: see `freezing.freeze_backbone`.
        finetuning: of what is not frozen.
        choice: of `finetune=auto`.
    """

    backbone: Backbone
    freeze: bool | str
    finetuning: Finetuning
    choice: Choice | None


def open_images(config: Config) -> tuple[Source, dict[str, Samples]]:
    """The source, and its images by split."""
    source = open_source(config.data.source, **config.data.of_source())
    for note in source.notes:
        log.info(note)
    return source, make_splits(source, **config.data.of_splits())


def open_backbone(config: Config) -> Backbone:
    """The pretrained network, with the preprocessing that it gets here."""
    backbone = build_backbone(**asdict(config.model))
    preprocessing = backbone.preprocessing.changed(**config.data.of_preprocessing())
    check_input(backbone, preprocessing.crop)
    if config.freeze is True and config.model.weights is None:
        log.warning("the backbone is frozen at random weights: use freeze=false, or model.weights=default")
    return backbone._replace(preprocessing=preprocessing)


def build_data(
    config: Config, splits: dict[str, Samples], backbone: Backbone, trainer: pl.Trainer, batch_size: int
) -> ImageDataModule:
    """The images as the network takes them."""
    return ImageDataModule(
        splits,
        training=training_transform(backbone.preprocessing, **config.augment.of_images()),
        evaluation=evaluation_transform(backbone.preprocessing),
        batch_size=batch_size,
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
        processes=trainer.num_devices,
        seed=config.seed,
        balanced=config.data.sampling == "balanced",
    )


def strategy_of(config: Config, backbone: Backbone, data: ImageDataModule, trainer: pl.Trainer) -> Strategy:
    """The strategy that is asked for, or that suits the images."""
    asked = Strategy(backbone, config.freeze, Finetuning(**config.finetune.settings()), None)
    if config.finetune.name != AUTO:
        return asked
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
        return asked._replace(freeze=True, finetuning=Finetuning(), choice=choice)
    if choice.strategy == SCRATCH:
        random = build_backbone(**asdict(config.model) | {"weights": None}).module
        at_once = replace(asked.finetuning, head_epochs=0, thawed_by=0.0)  # there is nothing to spare
        return asked._replace(backbone=backbone._replace(module=random), finetuning=at_once, choice=choice)
    finetuning = Finetuning(**finetune_preset(choice.strategy) | config.finetune.changed())
    finetuning = replace(finetuning, head_epochs=min(finetuning.head_epochs, config.epochs - 1))
    return asked._replace(finetuning=finetuning, choice=choice)


def build_classifier(
    config: Config,
    source: Source,
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    split: str,
    lr: float,
) -> TransferClassifier:
    """The network with its new head, and what a checkpoint says of how it was trained."""
    backbone, freeze, finetuning, choice = strategy
    num_classes, optimizer = len(source.class_names), asdict(config.optimizer) | {"lr": lr}
    return TransferClassifier(
        backbone.module,
        build_head(num_features=backbone.num_features, num_classes=num_classes, **asdict(config.head)),
        source.class_names,
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


def kept_features(
    config: Config,
    classifier: TransferClassifier,
    data: ImageDataModule,
    strategy: Strategy,
    trainer: pl.Trainer,
    *,
    epochs_done: int,
) -> FrozenFeatures | None:
    """What a backbone makes of the images while all of it is frozen; None where it has to see them at every step.

    Where it thaws later, these are of the training and validation images alone.
    """
    whole = strategy.freeze is True
    epochs = config.epochs if whole else strategy.finetuning.head_epochs
    if not isinstance(config.features, CachedFeatures):
        return None
    if not sees_all_images(trainer) or classifier.mixing is not None:  # which mixes images, not features
        return None
    if not whole and epochs_done >= epochs:  # as where the head never trains alone
        return None
    module = strategy.backbone.module
    return frozen_features(
        module,
        data,
        num_features=strategy.backbone.num_features,
        description={
            "model": classifier.hparams["model"],
            "backbone_sha256": classifier.hparams["backbone_sha256"] or module_sha256(module),
        },
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin,
        engine=config.features.engine,
        views=min(config.features.views, epochs) if config.augment.is_random else 1,
        max_gb=config.features.max_gb,
        show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
        evaluated=None if whole else ("val",),
        place=None if whole else torch.device("cpu"),  # what thaws later needs a GPU's memory
    )


def kept_images(
    config: Config, data: ImageDataModule, backbone: Backbone, trainer: pl.Trainer
) -> DecodedDataModule | None:
    """The decoded images; None where they are to be decoded at every step."""
    if config.data.cache != "decoded":
        return None
    if not sees_all_images(trainer):
        log.warning("data.cache=decoded is for runs that see all images (trainer.limit_*_batches): they are read anew")
        return None
    return decoded_images(
        data,
        backbone.preprocessing,
        config.augment.of_images(),
        device=trainer.strategy.root_device,
        max_gb=config.data.cache_gb,
        show_progress=config.trainer.enable_progress_bar and trainer.is_global_zero,
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
