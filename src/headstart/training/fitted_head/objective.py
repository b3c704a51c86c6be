"""Cross-entropy of linear heads with L2 regularisation: its value and gradient, for several heads at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headstart.training.fitted_head.rows import Spectrum, TrainingRows

SMALLEST_CURVATURE = 1e-8  # of a loss whose rows are all classified with certainty


@dataclass(frozen=True)
class Loss:
    """Cross-entropy with class weights and label smoothing, as `torch.nn.CrossEntropyLoss` defines them.

    Attributes:
        class_weights: shape (classes,).
        label_smoothing: fraction of the target spread over all classes, in [0, 1).
    """

    class_weights: Tensor
    label_smoothing: float = 0.0

    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each row, shape (rows, heads), from logits of shape (rows, heads, classes)."""
        heads = logits.shape[1]
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            labels.repeat_interleave(heads),
            self.class_weights,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return losses.view(-1, heads)

    def slopes(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradient of each row's loss with respect to its logits, in the place of its probabilities."""
        spread = self.label_smoothing / len(self.class_weights) * self.class_weights
        own = (1 - self.label_smoothing) * self.class_weights[labels]
        slopes = probabilities.mul_((own + spread.sum())[:, None, None])
        if self.label_smoothing:
            slopes -= spread
        slopes[torch.arange(len(labels), device=labels.device), :, labels] -= own[:, None]
        return slopes


class Sums:
    """Sums over rows that make up the value and the gradient of the loss of several heads.

    Args:
        heads: weights and, in the last row, biases of linear heads, shape (heads, width + 1, classes).
        loss: the loss of a row.
    """

    def __init__(self, heads: Tensor, loss: Loss) -> None:
        self._heads, self._loss = heads, loss
        self.value = heads.new_zeros(len(heads))
        self.gradient = torch.zeros_like(heads)
        self.curvature = heads.new_zeros(len(heads))

    def add(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add rows.

        Args:
            features: standardised features, shape (rows, width).
            labels: shape (rows,).
            weights: the weight of each row for each head, shape (rows, heads); None weighs all equally.

        Returns:
            The logits, shape (rows, heads, classes).
        """
        count, width, classes = self._heads.shape
        matrix = self._heads[:, :-1].transpose(0, 1).reshape(width - 1, count * classes)
        logits = (features @ matrix).view(-1, count, classes) + self._heads[:, -1]
        values, probabilities = self._loss.values(logits, labels), logits.softmax(dim=-1)
        curvatures = 1 - probabilities.square().sum(dim=-1)
        curvatures *= self._loss.class_weights[labels][:, None]
        slopes = self._loss.slopes(probabilities, labels)
        if weights is not None:
            values, curvatures, slopes = values * weights, curvatures * weights, slopes.mul_(weights[..., None])
        self.value += values.sum(dim=0)
        self.curvature += curvatures.sum(dim=0)
        by_weight = features.T @ slopes.view(len(features), count * classes)
        self.gradient[:, :-1] += by_weight.view(width - 1, count, classes).transpose(0, 1)
        self.gradient[:, -1] += slopes.sum(dim=0)
        return logits


def regularized(sums: Sums, heads: Tensor, total: Tensor, weight_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gradient of mean loss + weight_decay / 2 · |weight|², without the biases.

    Args:
        sums: the sums over all rows, of all processes.
        heads: the heads that they are of.
        total: the weight of all rows together, shape (heads,).
        weight_decay: shape (heads,).
    """
    value = sums.value / total + weight_decay / 2 * heads[:, :-1].square().sum(dim=(1, 2))
    gradient = sums.gradient / total[:, None, None]
    gradient[:, :-1] += weight_decay[:, None, None] * heads[:, :-1]
    return value, gradient


class Preconditioner:
    """An approximation of the inverse Hessian: the Kronecker product of the features' scatter and a curvature.

    The Hessian of cross-entropy is a sum of x xᵀ ⊗ (diag p - p pᵀ) over the rows (Böhning, 1992). Here the second
    factor is replaced by its mean eigenvalue over all rows.

    Args:
        spectrum: the spectrum of the scatter matrix of `rows` rows.
        rows: the number of rows.

    Attributes:
        curvature: the mean eigenvalue of each head, shape (heads,); empty before `update`.
    """

    def __init__(self, spectrum: Spectrum, rows: int) -> None:
        self._spectrum, self._rows = spectrum, rows
        self.curvature = self._weight_decay = torch.zeros(0)

    def update(self, sums: Sums, total: Tensor, weight_decay: Tensor) -> None:
        """Set curvature and weight decay of each head."""
        classes = sums.gradient.shape[-1]
        curvature = sums.curvature / total / (classes - 1)
        self.restore(curvature.clamp(min=SMALLEST_CURVATURE), weight_decay)

    def restore(self, curvature: Tensor, weight_decay: Tensor) -> None:
        """Set what an earlier `update` has computed."""
        self.curvature, self._weight_decay = curvature, weight_decay

    def solve(self, gradient: Tensor) -> Tensor:
        """Multiply gradients, shape (heads, width + 1, classes), by the approximate inverse Hessian."""
        curvature = self.curvature
        step = torch.empty_like(gradient)
        step[:, :-1] = self._spectrum.solve(gradient[:, :-1], curvature / self._rows, self._weight_decay)
        step[:, -1] = gradient[:, -1] / curvature[:, None]
        return step


def full_pass(rows: TrainingRows, heads: Tensor, loss: Loss, weights: Tensor | None) -> Sums:
    """Return the sums over all rows; see `Sums.add`."""
    sums = Sums(heads, loss)
    for part, features in rows.blocks(rows.block_rows(heads.shape[0] * heads.shape[2])):
        sums.add(features, rows.labels[part], None if weights is None else weights[part])
    return sums
