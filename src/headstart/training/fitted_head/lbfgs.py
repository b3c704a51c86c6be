"""L-BFGS for several independent problems at once, one evaluation at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

MEMORY = 10  # pairs of steps and gradient changes; scikit-learn's and SciPy's default
SUFFICIENT_DECREASE = 1e-4  # Nocedal & Wright, Numerical Optimization, section 3.1
SHORTEST_STEP = 1e-6  # a line search that is still not below its start has reached the limit of rounding


class LBFGS:
    """Limited-memory BFGS (Liu & Nocedal, 1989) with backtracking, for a batch of independent problems.

    The caller evaluates each problem at `trial` and passes value and gradient to `update`, which moves `trial`.
    A pass over the data thus makes one step of all problems.

    The approximate inverse Hessian is scaled to the last change of the gradient (Nocedal & Wright, equation 7.20), but
    never up: its curvature is an average, and longer steps are often rejected.

    Args:
        start: where the problems start, shape (problems, ...).

    Attributes:
        point: the best evaluated point of each problem; the optimum once `converged`.
        trial: where the problems are to be evaluated next.
        converged: which problems have converged, shape (problems,).
    """

    def __init__(self, start: Tensor) -> None:
        self.point, self.trial = start, start
        self.converged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self._gradient = self._direction = start.new_zeros(0)
        self._value = self._slope = self._step = start.new_zeros(0)
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of gradients, 1 / their product
        self._scale = start.new_ones(len(start))  # of the approximate inverse Hessian

    def update(self, value: Tensor, gradient: Tensor, solve: Callable[[Tensor], Tensor], tolerance: float) -> None:
        """Accept `trial`, or shorten the step, and choose the next `trial`.

        Args:
            value: the value of each problem at `trial`, shape (problems,).
            gradient: its gradient, shaped as `trial`.
            solve: multiplies gradients by an approximate inverse Hessian.
            tolerance: a problem has converged if a whole step would lower its value by about this much.
        """
        if not len(self._value):
            self._accept(torch.ones_like(self.converged), value, gradient)
        else:
            rounding = 8 * torch.finfo(value.dtype).eps * self._value.abs()
            enough = value <= self._value + SUFFICIENT_DECREASE * self._step * self._slope + rounding
            self._remember(enough, gradient, solve)
            self._accept(enough, value, gradient)
            self._shorten(~enough, value)
        self._turn(solve)
        self.converged = (-self._slope / 2 <= tolerance) | (self._step < SHORTEST_STEP)
        step = torch.where(self.converged, 0.0, self._step)
        self.trial = self.point + _column(step, self.point) * self._direction

    def _remember(self, accepted: Tensor, gradient: Tensor, solve: Callable[[Tensor], Tensor]) -> None:
        step = _column(torch.where(accepted, self._step, 0.0), self._direction) * self._direction
        change = torch.where(_column(accepted, gradient), gradient - self._gradient, 0.0)
        product = _dot(step, change)
        positive = product > torch.finfo(product.dtype).eps * _dot(change, change).sqrt() * _dot(step, step).sqrt()
        self._pairs = [*self._pairs[1 - MEMORY :], (step, change, torch.where(positive, 1 / product, 0.0))]
        self._scale = torch.where(positive, product / _dot(change, solve(change)), self._scale).clamp(max=1)

    def _accept(self, accepted: Tensor, value: Tensor, gradient: Tensor) -> None:
        if not len(self._value):
            self.point, self._value, self._gradient, self._step = self.trial, value, gradient, torch.ones_like(value)
            return
        keep = _column(accepted, gradient)
        self.point = torch.where(keep, self.trial, self.point)
        self._gradient = torch.where(keep, gradient, self._gradient)
        self._step = torch.where(accepted, 1.0, self._step)
        self._value = torch.where(accepted, value, self._value)

    def _shorten(self, rejected: Tensor, value: Tensor) -> None:
        """Shorten rejected steps to the minimum of the parabola through both values and the slope, within limits."""
        drop = self._slope * self._step
        parabola = -drop / (2 * (value - self._value - drop)).clamp(min=1e-300)
        shortened = self._step * parabola.nan_to_num(0.1).clamp(0.1, 0.5)
        self._step = torch.where(rejected, shortened, self._step)

    def _turn(self, solve: Callable[[Tensor], Tensor]) -> None:
        """Compute the search direction from the remembered pairs (Nocedal & Wright, algorithm 7.4)."""
        direction, factors = -self._gradient, []
        for step, change, inverse in reversed(self._pairs):
            factor = inverse * _dot(step, direction)
            direction = direction - _column(factor, change) * change
            factors.append(factor)
        direction = _column(self._scale, direction) * solve(direction)
        for (step, change, inverse), factor in zip(self._pairs, reversed(factors), strict=True):
            direction = direction + _column(factor - inverse * _dot(change, direction), step) * step
        self._direction, self._slope = direction, _dot(direction, self._gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state on a device."""
        self.__dict__.update(tree_map(lambda leaf: leaf.to(device), state))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the scalar product for each problem, shape (problems,)."""
    return (left * right).flatten(1).sum(dim=1)


def _column(value: Tensor, like: Tensor) -> Tensor:
    """Reshape a value for each problem, so that it is broadcast over the dimensions of `like`."""
    return value.view(-1, *[1] * (like.ndim - 1))
