"""What a training is like, epoch by epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor


class Watch(pl.Callback):
    """Notes what a training is like at the end of each epoch, and keeps each epoch's checkpoints.

    Attributes:
        trains: names of the parameters that train, by epoch.
        rates: learning rates, by epoch.
        states: all tensors, by epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trains: dict[int, set[str]] = {}
        self.rates: dict[int, list[float]] = {}
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Keeps the checkpoints as a run that is cut off here would have left them."""
        if (self.folder / "checkpoints").is_dir():
            shutil.copytree(self.folder / "checkpoints", self.folder / f"before{trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the epoch."""
        epoch = trainer.current_epoch
        self.trains[epoch] = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        self.rates[epoch] = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.states[epoch] = {name: value.clone() for name, value in pl_module.state_dict().items()}
