"""Lightning callbacks of a run."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, WeightAveraging

from headstart.data.samplers import mixed_seed
from headstart.training.classifier import TransferClassifier
from headstart.utils.metrics import LAST_EPOCH


class SeedEpochs(pl.Callback):
    """A callback that seeds torch at the start of every epoch.

    A resumed run thus draws the same random numbers, such as those of dropout, as a run that was not interrupted.

    Args:
        seed: the seed of the run; every epoch and process derives its own from it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Seed torch's random number generators for this epoch and process."""
        torch.manual_seed(mixed_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class ClassCurves(pl.Callback):
    """A callback that collects the validation accuracy of each class after every epoch.

    The values are saved in checkpoints, and a resumed run continues them.

    Attributes:
        epochs: for each epoch, the accuracy of each class in label order, as fractions in [0, 1].
    """

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the accuracies of the epoch, except those of Lightning's sanity check."""
        assert isinstance(pl_module, TransferClassifier)
        if not trainer.sanity_checking:
            self.epochs.append([round(value, 4) for value in pl_module.class_accuracy["val"].tolist()])

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracies to save in a checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the accuracies from a checkpoint."""
        self.epochs = state_dict["epochs"]


class LastEpoch(pl.Callback):
    """A callback that keeps the validation metrics of the last epoch.

    They are saved in checkpoints, so that a run that is resumed after its last epoch has them without training another.
    """

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the metrics of the epoch, except those of Lightning's sanity check."""
        assert isinstance(pl_module, TransferClassifier)
        if not trainer.sanity_checking:
            names = [f"val/{name}" for name in pl_module.logged_metrics]
            self._values = {name: round(float(trainer.callback_metrics[name]), 6) for name in names}

    @property
    def metrics(self) -> dict[str, float]:
        """Return `last_epoch/val/accuracy` and so on; empty without validation."""
        return {f"{LAST_EPOCH}{name}": value for name, value in self._values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics to save in a checkpoint."""
        return {"values": self._values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics from a checkpoint."""
        self._values = state_dict["values"]


class Timings(pl.Callback):
    """A callback that measures how long a run and its `fit` take; the run begins when this object is created."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._fit_start = self._fit_end = 0.0

    def add_earlier(self, seconds: float) -> None:
        """Add the seconds of what was trained before this run and belongs to it."""
        self._start -= seconds

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Record when `fit` begins."""
        if stage == "fit":
            self._fit_start = time.perf_counter()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Record when `fit` ends."""
        if stage == "fit":
            self._fit_end = time.perf_counter()

    @property
    def metrics(self) -> dict[str, float]:
        """Return `time/fit_s` and, up to now, `time/total_s`, in seconds."""
        now = time.perf_counter()
        return {"time/fit_s": round(self._fit_end - self._fit_start, 3), "time/total_s": round(now - self._start, 3)}


class StopEarly(EarlyStopping):
    """Lightning's early stopping, but with a patience that begins once everything that is ever trained is unfrozen.

    If the classifier monitors nothing, as without a val split, no run is stopped early.

    An epoch improves only by the monitored metric, as in Lightning; a lower loss at the same accuracy, by which
    `BestCheckpoint` chooses, does not renew the patience. If a run that was stopped early is resumed, it trains no
    further epoch.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check whether to stop; reset the patience as long as some blocks are still to be unfrozen.

        A head that no longer improves is no reason to skip the training of the backbone.
        """
        assert isinstance(pl_module, TransferClassifier)
        if pl_module.monitor is None:
            return
        if not pl_module.unfreezing.is_complete:
            self.wait_count = -1  # an epoch without improvement makes it 0
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop at once if the resumed run had already been stopped early."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True


class StopAfter(pl.Callback):
    """A callback that ends training after some epochs of a schedule that is made for more.

    Args:
        epochs: the number of epochs to train.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop at once if the resumed run had already trained that many epochs."""
        if trainer.current_epoch >= self.epochs:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop after the last of the epochs."""
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


class AveragedWeights(WeightAveraging):
    """Lightning's weight averaging, which also applies the average if no epoch remained to train."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the averaged weights into the model, as Lightning does only if it has trained an epoch."""
        self.on_train_end(trainer, pl_module)


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, which names the split that is evaluated and omits the logger's version."""

    @property
    def test_description(self) -> str:
        """Return the text in front of the bar during `trainer.test`."""
        classifier = self.trainer.lightning_module
        return f"Evaluating {getattr(classifier, 'evaluated_split', 'test')}"

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics shown behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
