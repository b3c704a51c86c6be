"""Callback that records a training epoch by epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor


class Watch(pl.Callback):
    """Records the state at the end of each epoch, and copies the checkpoints at its beginning.

    Attributes:
        trains: names of the trainable parameters, by epoch.
        rates: learning rates, by epoch.
        states: all tensors, by epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trains: dict[int, set[str]] = {}
        self.rates: dict[int, list[float]] = {}
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if (self.folder / "checkpoints").is_dir():
            shutil.copytree(self.folder / "checkpoints", self.folder / f"before{trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        self.trains[epoch] = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        self.rates[epoch] = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.states[epoch] = {name: value.clone() for name, value in pl_module.state_dict().items()}


def check_same(actual: Watch, expected: Watch, epochs: range) -> None:
    """Check weights, buffers, learning rates, trainable parameters and the last checkpoint's optimizer bit for bit."""
    for epoch in epochs:
        assert actual.trains[epoch] == expected.trains[epoch]
        assert actual.rates[epoch] == expected.rates[epoch]
        torch.testing.assert_close(actual.states[epoch], expected.states[epoch], rtol=0, atol=0)
    last, other = (torch.load(w.folder / "checkpoints" / "last.ckpt", weights_only=True) for w in (actual, expected))
    assert last.keys() == other.keys()
    for key in ("state_dict", *{"current_model_state"} & other.keys()):  # the second where the first is an average
        torch.testing.assert_close(last[key], other[key], rtol=0, atol=0)
    (state,), (other_state,) = last["optimizer_states"], other["optimizer_states"]
    torch.testing.assert_close(state["state"], other_state["state"], rtol=0, atol=0)
    assert state["param_groups"] == other_state["param_groups"]
