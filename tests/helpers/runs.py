"""Runs of the control panel in this process, and readers of their folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor

from headstart.config.check import check
from headstart.config.schema import Config
from tests.helpers.watch import Watch

ROOT = Path(__file__).parent.parent.parent
CONF = ROOT / "conf"
Train = Callable[..., dict[str, Any]]
# Overrides of a small run: no pretrained weights, no worker processes, no progress bar, no report.
SMALL = ("model.weights=null", "trainer=cpu", "trainer.enable_progress_bar=false", "data.num_workers=0", "report=false")
# 90 images each for val and test of the default's digits, where a user has 360 and 719.
DIGITS = ("data.val_fraction=0.05", "data.test_fraction=0.05")
# Three training images of each digit, and four for validation and test: there are ten digits.
FEW = ("data.train_per_class=3", "data.val_fraction=0.02", "data.test_fraction=0.02")
# A network with BatchNorm that is fast on small images: see `networks.py`, which registers it.
SIZE = ("data.image_size=32", "data.resize=32")
TINY_RESNET = ("model=timm", "model.name=tiny_resnet", *SIZE)
# A network that needs no registration, of 45 MB.
RESNET18 = ("model=resnet18", *SIZE)


def composed(*overrides: str) -> Config:
    """The checked configuration of a command line."""
    with initialize_config_dir(str(CONF)):
        return check(compose("train", list(overrides)))


def small(*overrides: str) -> tuple[str, ...]:
    """Return the overrides of a small run, with few of the default's digits."""
    other_data = any(override.startswith(("data=", "experiment=")) for override in overrides)
    return (*SMALL, *(() if other_data else DIGITS), *overrides)


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml"))


def read_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def findings(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without those of the features, which a run that is resumed after the head's epochs does not need."""
    return {name: value for name, value in figures(metrics).items() if not name.startswith("features/")}


def tensors(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def interrupt_after(epochs: int, *overrides: str, folder: Path) -> None:
    """Start a run that dies when an epoch begins, as by a power cut."""
    from headstart.train import run
    from headstart.training import build

    class PowerCutError(Exception):
        pass

    class CutPower(build.SeedEpochs):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == epochs:
                raise PowerCutError
            super().on_train_epoch_start(trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SeedEpochs", CutPower)
        with pytest.raises(PowerCutError):
            run(composed(*small(*overrides)), folder)


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's model folder."""
    return load_file(folder / "model" / "model.safetensors")


def report_words(root: Path, *more: str) -> list[str]:
    data = ("data=imagefolder", f"data.root={root}", "model.weights=default", "augment=flip")
    return [*SMALL, "report=true", *data, "lr=1e-2", "epochs=4", *more]


def recorded(train: Train, *overrides: str, folder: Path) -> tuple[Watch, dict[str, Any]]:
    """Return the record of each epoch of a run, and its metrics."""
    from headstart.training import build as module

    watch, build = Watch(folder), module.build_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_callbacks", lambda *a, **k: [*build(*a, **k), watch])
        return watch, train(*overrides, folder=folder)
