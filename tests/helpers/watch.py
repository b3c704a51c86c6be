"""What a training is like, epoch by epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
import torch
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


def check_same(ours: Watch, theirs: Watch, epochs: range) -> None:
    """Bit for bit: weights, buffers, learning rates, what trains, and the optimizer's state in the last checkpoint."""
    for epoch in epochs:
        assert ours.trains[epoch] == theirs.trains[epoch]
        assert ours.rates[epoch] == theirs.rates[epoch]
        torch.testing.assert_close(ours.states[epoch], theirs.states[epoch], rtol=0, atol=0)
    found, last = (torch.load(w.folder / "checkpoints" / "last.ckpt", weights_only=True) for w in (ours, theirs))
    assert found.keys() == last.keys()
    for key in ("state_dict", *{"current_model_state"} & last.keys()):  # the second where the first is an average
        torch.testing.assert_close(found[key], last[key], rtol=0, atol=0)
    (our_state,), (their_state,) = found["optimizer_states"], last["optimizer_states"]
    torch.testing.assert_close(our_state["state"], their_state["state"], rtol=0, atol=0)
    assert our_state["param_groups"] == their_state["param_groups"]
