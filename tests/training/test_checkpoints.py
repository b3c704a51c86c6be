"""Which epoch is the best, what is known of the last one, and that both survive an interruption."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from headstart.training.checkpoints import BestCheckpoint, LastCheckpoint
from headstart.training.trainer import build_trainer, quiet_lightning
from tests.helpers.runs import Train, findings, interrupt_after, read_metrics, read_rows

TRAINER = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "enable_progress_bar": False}
VALUES = st.tuples(st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.25, 0.5, 1.0]))
Epochs = Sequence[tuple[float, float]]


class Scripted(pl.LightningModule):
    """Logs given accuracies and losses, one pair for each epoch."""

    def __init__(self, epochs: Epochs, split: str) -> None:
        super().__init__()
        self.epochs, self.split = epochs, split
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any) -> Any:
        return self.layer(batch).sum()

    def on_train_epoch_end(self) -> None:
        accuracy, loss = self.epochs[self.current_epoch]
        self.log_dict({f"{self.split}/accuracy": accuracy, f"{self.split}/loss": loss})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def best_epoch(
    folder: Path,
    epochs: Epochs,
    *,
    monitor: str = "val/accuracy",
    count: int | None = None,
    resumed: Path | None = None,
) -> int:
    """Train, and return the epoch of best.ckpt, counted from 0; `count` is the number of epochs, if not all."""
    quiet_lightning()
    callbacks = [BestCheckpoint(folder, monitor, resumed), LastCheckpoint(folder)]
    trainer = build_trainer(callbacks, False, {**TRAINER, "max_epochs": count or len(epochs)})  # type: ignore[arg-type]
    module = Scripted(epochs, monitor.partition("/")[0])
    trainer.fit(module, DataLoader(torch.ones(1, 1)), ckpt_path=resumed, weights_only=True)
    return int(torch.load(folder / "best.ckpt", weights_only=True)["epoch"])


@settings(max_examples=12, deadline=None)
@given(epochs=st.lists(VALUES, min_size=2, max_size=5), data=st.data())
def test_of_equally_accurate_epochs_the_one_with_the_lowest_loss_is_the_best_and_resuming_changes_nothing(
    epochs: Epochs, data: st.DataObject
) -> None:
    expected = min(range(len(epochs)), key=lambda epoch: (-epochs[epoch][0], epochs[epoch][1], epoch))
    half = data.draw(st.integers(1, len(epochs) - 1), label="epochs before the interruption")
    with tempfile.TemporaryDirectory() as name:
        whole, parts, other = (Path(name, part) for part in ("whole", "parts", "other"))
        assert best_epoch(whole, epochs) == expected
        best_epoch(parts, epochs, count=half)
        assert best_epoch(other, epochs, resumed=parts / "last.ckpt") == expected  # in another folder
        assert best_epoch(parts, epochs, resumed=parts / "last.ckpt") == expected


@pytest.mark.parametrize(
    ("monitor", "epochs", "expected"),
    [
        ("train/accuracy", [(0.9, 1.0), (0.9, 0.5), (0.8, 0.1)], 1),
        ("val/loss", [(0.9, 0.5), (1.0, 0.5), (1.0, 0.6)], 0),
        ("val/accuracy", [(0.9, 0.5), (0.9, float("nan")), (0.9, 0.6)], 0),
    ],
)
def test_the_loss_that_decides_is_that_of_the_monitored_split(
    monitor: str, epochs: Epochs, expected: int, tmp_path: Path
) -> None:
    assert best_epoch(tmp_path, epochs, monitor=monitor) == expected


def test_the_best_epoch_of_a_checkpoint_that_does_not_know_its_loss_stays(tmp_path: Path) -> None:
    """As one of an earlier version."""
    epochs, last = [(0.9, 0.5), (0.9, 0.4), (1.0, 0.4)], tmp_path / "last.ckpt"
    best_epoch(tmp_path, epochs, count=1)
    checkpoint = torch.load(last, weights_only=True)
    del next(state for key, state in checkpoint["callbacks"].items() if "val/accuracy" in key)["best_loss"]
    torch.save(checkpoint, last)
    assert best_epoch(tmp_path, epochs, count=2, resumed=last) == 0
    assert best_epoch(tmp_path, epochs, count=3, resumed=last) == 2


def test_the_metrics_of_the_last_epoch_stand_beside_those_of_the_best(train: Train, tmp_path: Path) -> None:
    words = ("epochs=3", "optimizer=sgd", "lr=1.0")
    metrics = train(*words, "logger=csv", folder=tmp_path / "whole")
    names = ("loss", "accuracy", "macro_accuracy", "top5_accuracy")
    assert {name for name in metrics if name.startswith("last_epoch/")} == {f"last_epoch/val/{name}" for name in names}
    *_, last = (row for row in read_rows(tmp_path / "whole" / "csv" / "metrics.csv") if row["val/loss"])
    assert {name: metrics[f"last_epoch/val/{name}"] for name in names} == {
        name: round(float(last[f"val/{name}"]), 6) for name in names
    }
    assert metrics["epochs/best"] < 3
    assert metrics["last_epoch/val/loss"] != metrics["val/loss"]
    # Resumed in the middle, and after the last epoch, when there is none left to train.
    interrupt_after(2, *words, folder=tmp_path / "interrupted")
    for start, folder in (("interrupted", "interrupted"), ("whole", "again")):
        checkpoint = tmp_path / start / "checkpoints" / "last.ckpt"
        train(*words, f"ckpt_path={checkpoint}", folder=tmp_path / folder)
        assert findings(read_metrics(tmp_path / folder)) == findings(metrics)
