"""Cross-entropy of linear heads with L2 regularisation: its value and gradient, for several heads at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def values(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each row, shape (rows, heads), from those of shape (rows, heads, classes)."""
        own = (1 - self.label_smoothing) * self.class_weights[labels]
        values = -own[:, None] * log_probabilities[torch.arange(len(labels), device=labels.device), :, labels]
        return values - log_probabilities @ self._spread if self.label_smoothing else values

    def slopes(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradient of each row's loss with respect to its logits, in the place of its probabilities."""
        own = (1 - self.label_smoothing) * self.class_weights[labels]
        slopes = probabilities.mul_((own + self._spread.sum())[:, None, None])
        if self.label_smoothing:
            slopes -= self._spread
        slopes[torch.arange(len(labels), device=labels.device), :, labels] -= own[:, None]
        return slopes

    @property
    def _spread(self) -> Tensor:
        return self.label_smoothing / len(self.class_weights) * self.class_weights

    def to(self, dtype: torch.dtype) -> Loss:
        """Return the loss in another dtype."""
        return Loss(self.class_weights.to(dtype), self.label_smoothing)


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
        self.curvature = heads.new_zeros(len(heads), heads.shape[-1])  # of each class: the sum of p (1 - p)

    def add(self, features: Tensor, labels: Tensor) -> Tensor:
        """Add rows, and return their logits, shape (rows, heads, classes).

        Args:
            features: standardised features, shape (rows, width).
            labels: shape (rows,).
        """
        count, width, classes = self._heads.shape
        matrix = self._heads[:, :-1].transpose(0, 1).reshape(width - 1, count * classes)
        logits = (features @ matrix).view(-1, count, classes) + self._heads[:, -1]
        log_probabilities = logits.log_softmax(dim=-1)
        self.value += self._loss.values(log_probabilities, labels).sum(dim=0)
        probabilities = log_probabilities.exp_()
        variances = torch.addcmul(probabilities, probabilities, probabilities, value=-1)
        self.curvature += (self._loss.class_weights[labels] @ variances.flatten(1)).view(count, classes)
        slopes = self._loss.slopes(probabilities, labels)
        by_weight = features.T @ slopes.view(len(features), count * classes)
        self.gradient[:, :-1] += by_weight.view(width - 1, count, classes).transpose(0, 1)
        self.gradient[:, -1] += slopes.sum(dim=0)
        return logits

    def merge(self, part: Sums, heads: Tensor) -> None:
        """Add the sums of some of the heads, given by their numbers."""
        self.value[heads] += part.value
        self.gradient[heads] += part.gradient
        self.curvature[heads] += part.curvature


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
    """A diagonal approximation of the inverse Hessian, for features as coordinates in the basis of their scatter.

    The Hessian of cross-entropy is a sum of x xᵀ ⊗ (diag p - p pᵀ) over the rows (Böhning, 1992). In the basis, the sum
    of the first factors is diagonal. The second is replaced by one number for each class: the mean eigenvalue over all
    rows, times the square root of how much more than the mean the class varies. With strong weight decay, a frequent
    class is in fact curved in proportion to p (1 - p); with a weak one, all classes are alike. The square root needs
    the fewest passes over both.

    Args:
        values: the eigenvalues of the scatter matrix of `rows` rows, shape (width,).
        rows: the number of rows.

    Attributes:
        curvature: the curvature of each class of each head, shape (heads, classes); empty before `update`.
    """

    def __init__(self, values: Tensor, rows: int) -> None:
        self._variances = values[:, None] / rows
        self.curvature = self._weight_decay = torch.zeros(0)

    def update(self, sums: Sums, total: Tensor, weight_decay: Tensor) -> None:
        """Set curvature and weight decay of each head."""
        by_class = (sums.curvature / total[:, None]).clamp(min=SMALLEST_CURVATURE)
        classes = by_class.shape[1]
        mean = by_class.sum(dim=1, keepdim=True) / (classes - 1)
        self.restore(mean * (by_class / by_class.mean(dim=1, keepdim=True)).sqrt(), weight_decay)

    def restore(self, curvature: Tensor, weight_decay: Tensor) -> None:
        """Set what an earlier `update` has computed."""
        self.curvature, self._weight_decay = curvature, weight_decay

    def solve(self, gradient: Tensor) -> Tensor:
        """Multiply gradients, shape (heads, width + 1, classes), by the approximate inverse Hessian."""
        step = torch.empty_like(gradient)
        step[:, :-1] = gradient[:, :-1] / (
            self.curvature[:, None] * self._variances + self._weight_decay[:, None, None]
        )
        step[:, -1] = gradient[:, -1] / self.curvature
        return step
