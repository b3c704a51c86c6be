"""LightningModule whose linear head is fitted to its optimum on cached features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.data.datamodule import Batch
from headstart.training.classifier import TransferClassifier
from headstart.training.fitted_head.fit import Choice, HeadFit, choose_weight_decay, training_rows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.rows import Spectrum, TrainingRows, spectrum_of

log = logging.getLogger(__name__)
STATE = "fitted_head"  # key of the fit's state in a checkpoint


class HeadOptimizer(Optimizer):
    """An optimizer that takes one step of a fit; it lets Lightning count the steps."""

    def __init__(self, head: nn.Linear, move: Callable[[], None]) -> None:
        super().__init__(head.parameters(), {})
        self._move = move

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take a step."""
        self._move()


class FittedHeadClassifier(TransferClassifier):
    """A TransferClassifier with a frozen backbone whose linear head is fitted by L-BFGS.

    In every epoch it sees all training features once, in blocks, and then takes one step. It stops at the optimum.
    The features of all processes count as one set. Nothing is drawn at random.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._fit: HeadFit | None = None
        self._restored: dict[str, Any] | None = None
        self._measured: tuple[TrainingRows, Spectrum] | None = None  # until the fit begins
        for parameter in self.linear_head.parameters():
            nn.init.zeros_(parameter)  # rather than random weights: the result does not depend on the seed

    @property
    def linear_head(self) -> nn.Linear:
        """Return the head."""
        assert isinstance(self.head, nn.Linear)
        return self.head

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer that takes the fit's steps."""
        return HeadOptimizer(self.linear_head, self._move)

    def choose_weight_decay(
        self, data: FeatureDataModule, device: torch.device, advance: Callable[[int], None] = lambda _: None
    ) -> Choice:
        """Choose the weight decay by cross-validation on the training features; see `fit.choose_weight_decay`."""
        rows, spectrum = self._measured = self._measure(data, device)
        loss = self.fit_loss(device, rows.dtype)
        return choose_weight_decay(data, rows, spectrum, self.linear_head, loss, advance)

    def _measure(self, data: FeatureDataModule, device: torch.device) -> tuple[TrainingRows, Spectrum]:
        rows = training_rows(data, device)
        return rows, spectrum_of(rows)

    def fit_loss(self, device: torch.device, dtype: torch.dtype) -> Loss:
        """Return the loss that is minimised, on a device."""
        weights = torch.ones(len(self.class_names)) if self.class_weights is None else self.class_weights
        return Loss(weights.to(device, dtype), self.label_smoothing)

    def on_train_start(self) -> None:
        """Measure the training features, and start or continue the fit."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows, spectrum = self._measured or self._measure(data, self.device)
        self._measured = None
        weight_decay = self.hparams["optimizer"]["weight_decay"]
        self._fit = HeadFit(rows, spectrum, self.fit_loss(self.device, rows.dtype), weight_decay)
        if self._restored is None:
            self._fit.start(self.linear_head)
        else:
            self._fit.load_state_dict(self._restored, self.linear_head)
            self.trainer.should_stop = self._fit.converged

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]  # noqa: ARG002
        """Add a block of features to the fit and to the training metrics; the last block of an epoch takes a step."""
        assert self._fit is not None
        features, labels = batch
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            logits = self._fit.add(features, labels).float()
            loss = F.cross_entropy(logits, labels, self.class_weights, label_smoothing=self.label_smoothing)
            self._add_batch("train", logits, labels, loss)
            if self.trainer.is_last_batch:
                for parameter in self.head.parameters():
                    parameter.grad = torch.zeros_like(parameter)  # the gradient scaler of 16-mixed looks for one
                if scaler := getattr(self.trainer.precision_plugin, "scaler", None):
                    scaler.scale(loss)  # it takes no step before it has scaled something
                self.optimizers().step()  # type: ignore[union-attr]

    def _move(self) -> None:
        assert self._fit is not None
        self._fit.step(self._all_reduce)
        last = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        self._fit.write(self.linear_head, evaluated=self._fit.converged or last)
        if self._fit.converged:
            self.trainer.should_stop = True
        elif last:
            log.warning("the head has not reached its optimum in optimizer.max_iter=%d passes", self.trainer.max_epochs)

    def _all_reduce(self, tensor: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the fit."""
        if self._fit is not None:
            checkpoint[STATE] = self._fit.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state of the fit; see `TransferClassifier.on_load_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._restored = checkpoint.get(STATE)
