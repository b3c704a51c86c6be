"""Training rows of a linear head: features in blocks, standardised, and what their spread says about curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = 32 * 2**20  # of the features, and of the logits, of a block
GPU_BLOCK_BYTES = 128 * 2**20  # a pass over ImageNet's rows then takes two thirds of the time on an H100
FEWEST_ROWS = 64  # in a block, however wide it is
LARGEST_EIGENPROBLEM = 4096  # rows or columns; an eigendecomposition of that size takes half a minute on two cores
# Fraction of the largest eigenvalue, or of the mean, below which an eigenvalue or a deviation is rounding error.
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-6}


@dataclass(frozen=True)
class Standardization:
    """The shift and scale that give each feature mean 0 and variance 1 over the training rows.

    Attributes:
        mean: the mean of each feature, shape (width,).
        scale: the standard deviation of each feature, shape (width,); 1 for a feature that is constant.
    """

    mean: Tensor
    scale: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Standardise features of shape (rows, width), in the dtype and on the device of the mean."""
        return features.to(self.mean, copy=True).sub_(self.mean).div_(self.scale)  # in place: this is in every pass

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head on raw features that gives the logits of a head on standardised features.

        Args:
            weight: shape (..., width, classes).
            bias: shape (..., classes).

        Returns:
            Weight and bias, of the same shapes.
        """
        raw = weight / self.scale[:, None]
        return raw, bias - self.mean @ raw

    def unfold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head on standardised features that gives the logits of a head on raw features."""
        return weight * self.scale[:, None], bias + self.mean @ weight


class TrainingRows:
    """The rows that a linear head is fitted to, read in blocks, so that memory does not grow with their number.

    Args:
        read: returns the features of rows, shape (rows, width), from their numbers, int64, shape (rows,).
        labels: the label of each row, int64, shape (rows,), on the device of the fit.
        dtype: the dtype to compute in.

    Attributes:
        labels: the labels.
        width: the number of features.
        standardization: how the features are standardised.
    """

    def __init__(self, read: Callable[[Tensor], Tensor], labels: Tensor, dtype: torch.dtype) -> None:
        self._read, self.labels, self.dtype = read, labels, dtype
        self.width = read(torch.arange(1)).shape[1]
        self.standardization = self._measure()

    def __len__(self) -> int:
        return len(self.labels)

    def block_rows(self, columns: int) -> int:
        """Return the number of rows in a block, if each has this many logits."""
        size = GPU_BLOCK_BYTES if self.labels.is_cuda else BLOCK_BYTES
        return max(FEWEST_ROWS, size // (max(self.width, columns) * self.dtype.itemsize))

    def blocks(self) -> Iterator[Tensor]:
        """Yield the standardised features of all rows in blocks."""
        yield from map(self.standardized, self._numbers())

    def raw_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features, as they are read, and the labels of all rows in blocks."""
        for rows in self._numbers():
            yield self._read(rows), self.labels[rows.to(self.labels.device)]

    def standardized(self, rows: Tensor) -> Tensor:
        """Return the standardised features of rows, from their numbers."""
        return self.standardization.apply(self._read(rows))

    def _numbers(self) -> tuple[Tensor, ...]:
        return torch.split(torch.arange(len(self)), self.block_rows(1))

    def _raw(self, rows: Tensor) -> Tensor:
        return self._read(rows).to(self.labels.device, self.dtype)

    def _measure(self) -> Standardization:
        """Measure mean and standard deviation in two passes, which lose no digits where the mean is large."""
        mean = self._mean(lambda block: block)
        scale = self._mean(lambda block: (block - mean).square()).sqrt()
        return Standardization(mean, torch.where(scale > ROUNDING[self.dtype] * mean.abs(), scale, 1.0))

    def _mean(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(self.width, dtype=self.dtype, device=self.labels.device)
        for rows in self._numbers():
            total += of(self._raw(rows)).sum(dim=0)
        return total / len(self)


@dataclass(frozen=True)
class Spectrum:
    """An orthonormal basis in which the scatter matrix of the standardised features is diagonal.

    L2 regularisation is the same in every orthonormal basis. So heads are fitted by their coordinates in this one,
    where the curvature of the loss is roughly diagonal, too.

    Attributes:
        vectors: the basis, shape (width, rank); None for that of the features as they are.
        values: the eigenvalue of each vector, shape (rank,).
    """

    vectors: Tensor | None
    values: Tensor

    def coordinates(self, heads: Tensor) -> Tensor:
        """Return heads of shape (..., width + 1, classes), biases last, in the basis: (..., rank + 1, classes).

        A gradient is turned in the same way.
        """
        return heads if self.vectors is None else _turn(self.vectors.T, heads)

    def heads(self, coordinates: Tensor) -> Tensor:
        """Return the heads that have these coordinates."""
        return coordinates if self.vectors is None else _turn(self.vectors, coordinates)

    def in_its_basis(self) -> Spectrum:
        """Return the spectrum of features that are given by their coordinates in the basis."""
        return Spectrum(None, self.values)

    def to(self, dtype: torch.dtype) -> Spectrum:
        """Return the spectrum in another dtype."""
        return Spectrum(None if self.vectors is None else self.vectors.to(dtype), self.values.to(dtype))


def _turn(matrix: Tensor, heads: Tensor) -> Tensor:
    """Multiply the weights of heads by a matrix, and keep their biases."""
    weights = heads[..., :-1, :].movedim(-2, 0)
    columns = (matrix @ weights.reshape(len(weights), -1)).view(-1, *weights.shape[1:])  # reads the matrix only once
    return torch.cat([columns.movedim(0, -2), heads[..., -1:, :]], dim=-2)


def spectrum_of(rows: TrainingRows) -> Spectrum:
    """Decompose the scatter matrix of the standardised features, or that of the rows where these are fewer.

    If both are more than `LARGEST_EIGENPROBLEM`, nothing is decomposed: every feature is given the mean eigenvalue.
    """
    rounding = ROUNDING[rows.dtype]
    if min(rows.width, len(rows)) > LARGEST_EIGENPROBLEM:
        return Spectrum(None, torch.full_like(rows.standardization.mean, float(len(rows))))
    if rows.width <= len(rows):
        scatter = rows.standardization.mean.new_zeros(rows.width, rows.width)
        for block in rows.blocks():
            scatter.addmm_(block.T, block)
        values, vectors = torch.linalg.eigh(scatter)
        return Spectrum(vectors, values.clamp(min=float(rounding * values[-1])))  # none is 0, to divide by
    features = torch.cat(list(rows.blocks()))
    values, turned = torch.linalg.eigh(features @ features.T)
    kept = values > rounding * values[-1]
    return Spectrum(features.T @ (turned[:, kept] / values[kept].sqrt()), values[kept])
