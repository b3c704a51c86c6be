"""Training of a tiny classifier on images in memory: Lightning's Trainer with the callbacks that a run has."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.config.schema import Config
from headstart.data.augmentation import build_mixing
from headstart.models.unfreezing import Finetuning
from headstart.training.build import build_callbacks
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer, build_schedule
from headstart.training.trainer import build_trainer, quiet_lightning
from tests.helpers.classifiers import images, to_tensor
from tests.helpers.runs import SMALL, composed
from tests.helpers.watch import Watch

COSINE = {"name": "cosine", "warmup_epochs": 1}


class Chain(nn.Sequential):
    """Three blocks with BatchNorm, the uppermost with dropout: enough for every stage of every strategy."""

    def __init__(self) -> None:
        super().__init__()
        for number, channels in enumerate((3, 6, 6)):
            layers = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
            self.add_module(f"block{number + 1}", layers)
        self.block3.append(nn.Dropout(0.3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def shaken(image: Any) -> Tensor:
    """A random transform, which draws from torch's generator alone: that is what each image has a seed for."""
    return to_tensor(image) + 0.1 * torch.rand(())


@cache
def settings() -> Config:
    """Those of a small run without loggers."""
    return composed(*SMALL, "logger=csv", "logger.csv=false")


def fitted(
    folder: Path,
    finetuning: Finetuning,
    *,
    epochs: int = 4,
    resumed: Path | None = None,
    freeze: bool | str = False,
    scheduler: dict[str, Any] = COSINE,
    mixes: bool = False,
    ema: float | None = None,
    workers: int = 0,
) -> tuple[TransferClassifier, Watch]:
    """Trains, as `train.run` would.

    Args:
        folder: where its checkpoints go.
        finetuning: what trains when.
        epochs: of the whole training.
        resumed: a checkpoint to go on from.
        freeze: what stays frozen.
        scheduler: of the learning rate.
        mixes: with MixUp and CutMix.
        ema: average the weights.
        workers: processes that load images.
    """
    quiet_lightning()
    torch.manual_seed(0)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))
    classifier = TransferClassifier(
        Chain(),
        head,
        ("dark", "bright"),
        freeze=freeze,
        finetuning=finetuning,
        optimizer=partial(build_optimizer, name="adamw", lr=3e-2, weight_decay=0.02),
        scheduler=partial(build_schedule, **scheduler),
        monitor="val/loss",
        mixing=build_mixing(2, mixup=0.2, cutmix=1.0) if mixes else None,
    )
    watch = Watch(folder)
    chosen = replace(settings().callbacks, early_stopping=None, ema=ema)
    config = replace(settings(), callbacks=chosen, monitor="val/loss", ckpt_path=str(resumed) if resumed else None)
    callbacks = [*build_callbacks(config, folder), watch]
    trainer = build_trainer(callbacks, False, asdict(config.trainer) | {"max_epochs": epochs})
    trainer.fit(classifier, images(24, workers=workers, transform=shaken), ckpt_path=resumed, weights_only=True)
    return classifier, watch
