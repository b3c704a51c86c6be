"""Linear heads on the features of images: out-of-fold answers, and the answers of a head for other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.cache.feature_loaders import FeatureTable
from headstart.training.fitted_head.fit import fit_at_once, fit_dtype
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.path import (
    PATH_DTYPE,
    PRECISIONS,
    PathPoint,
    best_point,
    inner_folds,
    solve,
    weight_decay_path,
    weight_of_others,
)
from headstart.training.fitted_head.rows import Spectrum, TrainingRows, spectrum_of
from headstart.utils.progress import Advance

READ_ROWS = 4096  # features that are read at once


@dataclass(frozen=True)
class CrossValidation:
    """Heads that are each fitted to all folds but one, at the weight decay with the lowest out-of-fold log loss.

    Attributes:
        rows: the features and labels of the images.
        spectrum: their spectrum.
        loss: the loss of a row.
        folds: the fold of each row, int64, shape (rows,), on the CPU.
        best: the point of the path with the lowest loss.
        heads: heads for standardised features, shape (folds, width + 1, classes).
    """

    rows: TrainingRows
    spectrum: Spectrum
    loss: Loss
    folds: Tensor
    best: PathPoint
    heads: Tensor

    def answers(self) -> NDArray[np.float64]:
        """Return the log probabilities of each row by the head that was not fitted to it, shape (rows, classes)."""
        answers = torch.empty(len(self.rows), self.heads.shape[2], dtype=torch.float64)
        for fold, head in enumerate(self.heads):
            members = (self.folds == fold).nonzero()[:, 0]
            for numbers in torch.split(members, self.rows.block_rows(self.heads.shape[2])):
                logits = self.rows.standardized(numbers) @ head[:-1] + head[-1]
                answers[numbers] = logits.double().log_softmax(dim=1).cpu()
        return answers.numpy()

    def without(self, left_out: NDArray[np.bool_]) -> CrossValidation:
        """Fit the heads again to fewer rows, in the same folds and with the same weight decay.

        Args:
            left_out: rows that no head is fitted to, shape (rows,); they are answered all the same. If no row were left
                in a fold, nothing is left out.
        """
        if len(np.unique(self.folds.numpy()[~left_out])) < len(self.heads):
            return self
        folds = torch.where(torch.from_numpy(left_out), -1, self.folds).to(self.rows.labels.device)
        folded = FoldedRows(self.rows, self.spectrum, folds, PATH_DTYPE)
        weight_decay = self.best.precision / weight_of_others(folded, self.loss)
        heads, _ = solve(folded, self.loss, self.best.heads, weight_decay)
        return replace(self, heads=folded.standardized_heads(heads))

    def final_head(self) -> nn.Linear:
        """Return a head that is fitted to all rows, on raw features, as optimizer=lbfgs fits it."""
        head = nn.Linear(self.rows.width, self.heads.shape[2]).to(self.rows.labels.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        total = float(self.loss.class_weights[self.rows.labels].sum())
        fit_at_once(self.rows, self.spectrum, head, self.loss, self.best.precision / total)
        return head


def cross_validate(
    features: FeatureTable,
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    groups: Sequence[str] | None,
    classes: int,
    advance: Advance,
) -> CrossValidation:
    """Fit heads to the features of images in folds.

    Args:
        features: the features of all images.
        images: indices of those to fit to, N of them.
        labels: the label of each, shape (N,).
        groups: the group of each; images of one group, such as copies, are in one fold. None without groups.
        classes: the number of classes.
        advance: called with N after each weight decay that is tried, of `PRECISIONS` at most.
    """
    numbers, device = torch.from_numpy(images), features.labels.device
    rows = TrainingRows(
        lambda rows: features.rows_at(numbers[rows])[0], torch.from_numpy(labels).to(device), fit_dtype(device)
    )
    spectrum, loss = spectrum_of(rows), Loss(torch.ones(classes, dtype=rows.dtype, device=device))
    folds = torch.from_numpy(inner_folds(labels, groups))
    folded = FoldedRows(rows, spectrum, folds.to(device), PATH_DTYPE)
    best = best_point(weight_decay_path(folded, loss, advance))
    return CrossValidation(rows, spectrum, loss, folds, best, folded.standardized_heads(best.heads))


def steps(images: int) -> int:
    """Return how far `cross_validate` advances at most."""
    return len(PRECISIONS) * images


@torch.no_grad()
def classify(head: nn.Linear, features: FeatureTable, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class that a head gives each image, int64, shape (images,)."""
    parts = torch.split(torch.from_numpy(images), READ_ROWS)
    answers = [head(features.rows_at(part)[0].float()).argmax(dim=1).cpu() for part in parts]
    return torch.cat(answers).numpy()
