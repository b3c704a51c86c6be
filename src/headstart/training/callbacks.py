"""What watches a run, and where its scalars go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headstart.data.samplers import mixed_seed
from headstart.training.checkpoints import KeepBest, KeepLast
from headstart.training.classifier import TransferClassifier
from headstart.utils.metrics import direction


class SeedEpochs(pl.Callback):
    """Seeds torch at the start of every epoch, so that a resumed run draws the same dropout as one that ran on.

    Args:
        seed: of the run; each process and each epoch has its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Seeds the epoch that begins."""
        torch.manual_seed(mixed_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class ClassCurves(pl.Callback):
    """Keeps the accuracy of each class on the validation split, epoch by epoch; a resumed run goes on with it.

    Attributes:
        epochs: of each epoch, a fraction for each class.
    """

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the epoch's."""
        assert isinstance(pl_module, TransferClassifier)
        if not trainer.sanity_checking:
            self.epochs.append([round(value, 4) for value in pl_module.class_accuracy["val"].tolist()])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.epochs = state_dict["epochs"]


class Timings(pl.Callback):
    """Measures how long a run and its fit take, from when this is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._fit_start = self._fit_end = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Notes when fit begins."""
        if stage == "fit":
            self._fit_start = time.perf_counter()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Notes when fit ends."""
        if stage == "fit":
            self._fit_end = time.perf_counter()

    @property
    def metrics(self) -> dict[str, float]:
        """Returns `time/fit_s`, and `time/total_s` up to now."""
        now = time.perf_counter()
        return {
            "time/fit_s": round(self._fit_end - self._fit_start, 3),
            "time/total_s": round(now - self._start, 3),
        }


class StopEarly(EarlyStopping):
    """Lightning's early stopping, whose patience begins with the epoch in which everything trains.

    A run that was stopped and is resumed has stopped, and trains no epoch more.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for what is yet to unfreeze: a head that has learned all it can is no reason to leave the rest out."""
        assert isinstance(pl_module, TransferClassifier)
        if not pl_module.unfreezing.is_complete:
            self.wait_count = -1  # an epoch without improvement makes it 0
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stops what had stopped."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True


class AveragedWeights(WeightAveraging):
    """Lightning's averaged weights, which a run ends with where there was no epoch left to train, too."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the average: Lightning does so in a training alone."""
        self.on_train_end(trainer, pl_module)


class ProgressBar(RichProgressBar):
    """Lightning's bar, which says which split is evaluated and leaves the logger's version out."""

    @property
    def test_description(self) -> str:
        """What stands in front of the bar in evaluation."""
        classifier = self.trainer.lightning_module
        return f"Evaluating {getattr(classifier, 'evaluated_split', 'test')}"

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def build_callbacks(
    folder: Path,
    *,
    monitor: str,
    seed: int,
    resumed: str | None,
    progress: bool,
    early_stopping: dict[str, float] | None,
    checkpoint: bool,
    learning_rate: bool,
    ema: float | None,
) -> list[pl.Callback]:
    """The callbacks of a run.

    Args:
        folder: the run folder.
        monitor: the metric that stops early and picks the best checkpoint.
        seed: of the run.
        resumed: the checkpoint that is resumed, if any.
        progress: show bars.
        early_stopping: `patience` in epochs and `min_delta`, or None to train all epochs.
        checkpoint: keep `checkpoints/best.ckpt` and `last.ckpt`.
        learning_rate: log it.
        ema: the share of a moving average of the weights that a step leaves, or None to average nothing.
    """
    callbacks: list[pl.Callback] = [SeedEpochs(seed)]
    if progress:
        callbacks.append(ProgressBar(leave=False))
    if early_stopping is not None:
        callbacks.append(
            StopEarly(
                monitor,
                min_delta=early_stopping["min_delta"],
                patience=int(early_stopping["patience"]),
                mode=direction(monitor),
                check_on_train_epoch_end=True,
            )
        )
    if learning_rate:
        callbacks.append(LearningRateMonitor(logging_interval="epoch"))
    if ema is not None:
        # Lightning's EMAWeightAveraging rounds what does not change, as what is frozen; lerp keeps it bit for bit.
        average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
        callbacks.append(AveragedWeights(multi_avg_fn=average))
    if checkpoint:
        # The best first: what is resumed knows of it.
        checkpoints = folder / "checkpoints"
        callbacks += [KeepBest(checkpoints, monitor, Path(resumed) if resumed else None), KeepLast(checkpoints)]
    return callbacks
