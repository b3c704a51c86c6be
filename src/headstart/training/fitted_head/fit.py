"""Fit of one linear head to its optimum, and the choice of its weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.lbfgs import LBFGS
from headstart.training.fitted_head.objective import Loss, Preconditioner, Sums, regularized
from headstart.training.fitted_head.path import PATH_DTYPE, best_point, inner_folds, weight_decay_path
from headstart.training.fitted_head.rows import Spectrum, TrainingRows

# How much a Newton step may still lower the mean loss: then weights are right to about 1e-6 of their size in float64,
# and answers to 1e-4 in float32.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-11}
MOST_PASSES = 500  # that of conf/optimizer/lbfgs.yaml


class HeadFit:
    """The fit of a linear head to its optimum: add all rows, take a step, and again, until it has converged.

    It minimises the mean cross-entropy plus weight_decay / 2 · |W|², where W are the weights on standardised features.
    The bias has no weight decay.

    Args:
        rows: the training rows, for their statistics; this process may add some of them only.
        spectrum: their spectrum.
        loss: the loss of a row.
        weight_decay: the weight decay.

    Attributes:
        converged: whether the head is at its optimum.
    """

    def __init__(self, rows: TrainingRows, spectrum: Spectrum, loss: Loss, weight_decay: float) -> None:
        self._standardization, self._spectrum, self._loss = rows.standardization, spectrum, loss
        self._total = loss.class_weights[rows.labels].sum().view(1)
        self._weight_decay = torch.full_like(self._total, weight_decay)
        self._preconditioner = Preconditioner(spectrum.values, len(rows))
        self._tolerance = TOLERANCES[rows.dtype]
        self._lbfgs: LBFGS | None = None
        self._sums: Sums | None = None
        self.converged = False

    def start(self, head: nn.Linear) -> None:
        """Start at the head's weights."""
        standardized = _joined(*self._standardization.unfold(*_transposed(head, self._total)))
        self._begin(LBFGS(self._spectrum.coordinates(standardized)))

    def _begin(self, lbfgs: LBFGS) -> None:
        self._lbfgs, self._sums = lbfgs, Sums(self._spectrum.heads(lbfgs.trial), self._loss)
        self.converged = bool(lbfgs.converged.all())

    def add(self, features: Tensor, labels: Tensor) -> Tensor:
        """Add rows to the sums of this pass, and return their logits of shape (rows, classes)."""
        assert self._sums is not None
        return self._sums.add(self._standardization.apply(features), labels)[:, 0]

    def step(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Take a step, after all rows were added.

        Args:
            all_reduce: adds a tensor over all processes.
        """
        assert self._lbfgs is not None
        assert self._sums is not None
        lbfgs, sums = self._lbfgs, self._sums
        sums.value, sums.gradient = all_reduce(sums.value), all_reduce(sums.gradient)
        sums.curvature = all_reduce(sums.curvature)
        sums.gradient = self._spectrum.coordinates(sums.gradient)
        if not self._preconditioner.curvature.numel():
            self._preconditioner.update(sums, self._total, self._weight_decay)
        value, gradient = regularized(sums, lbfgs.trial, self._total, self._weight_decay)
        lbfgs.update(value, gradient, self._preconditioner.solve, self._tolerance)
        self._begin(lbfgs)

    def write(self, head: nn.Linear, *, evaluated: bool) -> None:
        """Write the current weights to a head on raw features.

        Args:
            head: the head.
            evaluated: the best weights so far, rather than those whose loss comes next; the same once converged.
        """
        assert self._lbfgs is not None
        joined = self._spectrum.heads((self._lbfgs.point if evaluated else self._lbfgs.trial)[0])
        _write(head, *self._standardization.fold(joined[:-1], joined[-1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        assert self._lbfgs is not None
        return {"lbfgs": self._lbfgs.state_dict(), "curvature": self._preconditioner.curvature, "basis": self._basis()}

    def load_state_dict(self, state: dict[str, Any], head: nn.Linear) -> None:
        """Restore the state and continue bit for bit, or start at the head's weights if the state is of another basis.

        Another processor or number of threads may give eigenvectors another sign.
        """
        if "basis" not in state or not torch.equal(state["basis"].to(self._total.device), self._basis()):
            self.start(head)
            return
        lbfgs = LBFGS(self._total)
        lbfgs.load_state_dict(state["lbfgs"], self._total.device)
        self._preconditioner.restore(state["curvature"].to(self._total.device), self._weight_decay)
        self._begin(lbfgs)

    def _basis(self) -> Tensor:
        """Return what tells bases apart."""
        vectors = self._spectrum.vectors
        return self._spectrum.values if vectors is None else vectors.sum(dim=0)


class Choice(NamedTuple):
    """The weight decay with the lowest cross-validated log loss.

    Attributes:
        weight_decay: the weight decay of the mean loss.
        loss: the mean out-of-fold log loss.
        error: its standard error.
        folds: the number of folds.
        tried: how many values were tried.
    """

    weight_decay: float
    loss: float
    error: float
    folds: int
    tried: int

    def __str__(self) -> str:
        return (
            f"{self.weight_decay:.3g}, with the lowest log loss of {self.tried} values, {self.loss:.4f} ± "
            f"{self.error:.4f} in {self.folds}-fold cross-validation"
        )


def choose_weight_decay(
    data: FeatureDataModule,
    rows: TrainingRows,
    spectrum: Spectrum,
    head: nn.Linear,
    loss: Loss,
    advance: Callable[[int], None] = lambda _: None,
) -> Choice:
    """Choose the weight decay by cross-validation, and move the head to the mean of the folds' heads.

    Args:
        data: gives labels and groups of the training images. All views of an image are in one fold.
        rows: the training rows.
        spectrum: their spectrum.
        head: the head.
        loss: the loss of a row.
        advance: called with the number of rows after each value.
    """
    samples = data.splits["train"]
    by_image = inner_folds(samples.labels, samples.groups)
    folds = torch.from_numpy(np.tile(by_image, len(rows) // len(by_image))).to(rows.labels.device)
    folded = FoldedRows(rows, spectrum, folds, PATH_DTYPE)
    points = weight_decay_path(folded, loss, advance)
    best = best_point(points)
    mean = folded.standardized_heads(best.heads).mean(dim=0)
    _write(head, *rows.standardization.fold(mean[:-1], mean[-1]))
    total = float(loss.class_weights[rows.labels].sum())
    return Choice(best.precision / total, best.loss, best.error, folded.folds, len(points))


def fit_at_once(rows: TrainingRows, spectrum: Spectrum, head: nn.Linear, loss: Loss, weight_decay: float) -> int:
    """Move a head to its optimum, outside of a training run; see `HeadFit`.

    Returns:
        The number of passes over the rows.
    """
    fit, passes = HeadFit(rows, spectrum, loss, weight_decay), 0
    fit.start(head)
    while not fit.converged and passes < MOST_PASSES:
        for features, labels in rows.raw_blocks():
            fit.add(features, labels)
        fit.step(lambda total: total)
        passes += 1
    fit.write(head, evaluated=True)
    return passes


def training_rows(data: FeatureDataModule, device: torch.device) -> TrainingRows:
    """Return the training rows of a data module: all views of all images, whichever process has them."""
    table = data.training_table
    labels = table.labels.to(device).repeat(table.views)
    return TrainingRows(lambda rows: table.rows_at(rows)[0], labels, fit_dtype(device))


def fit_dtype(device: torch.device) -> torch.dtype:
    """Return float64 on a CPU, and float32 elsewhere: most GPUs compute float64 at a small fraction of the speed."""
    return torch.float64 if device.type == "cpu" else torch.float32


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight, bias[None]])[None]


def _transposed(head: nn.Linear, like: Tensor) -> tuple[Tensor, Tensor]:
    return head.weight.detach().T.to(like), head.bias.detach().to(like)


@torch.no_grad()
def _write(head: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    head.weight.copy_(weight.T)
    head.bias.copy_(bias)
