"""Training rows in folds, for heads that are each fitted to the rows of all folds but one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headstart.training.fitted_head.rows import Spectrum, TrainingRows

KEPT_BYTES = 2**30  # largest features that are kept in memory: 200,000 rows of 1280


class FoldedRows:
    """Training rows by fold.

    Small features are kept in memory, as coordinates in the basis of their spectrum: fewer rows than features have as
    few coordinates as rows. Larger ones are read and standardised in every pass.

    Args:
        rows: the training rows.
        spectrum: their spectrum.
        folds: the fold of each row from 0, or -1 to leave it out, shape (rows,), on the device of the rows.
        dtype: the dtype to compute in.

    Attributes:
        labels: the labels of the rows of each fold.
        spectrum: the spectrum of the features as they are passed by `blocks`.
    """

    def __init__(self, rows: TrainingRows, spectrum: Spectrum, folds: Tensor, dtype: torch.dtype) -> None:
        self._rows, self.dtype = rows, dtype
        self._members = [(folds == fold).nonzero()[:, 0].cpu() for fold in range(int(folds.max()) + 1)]
        self.labels = [rows.labels[members.to(rows.labels.device)] for members in self._members]
        self._spectrum, self.spectrum = spectrum, spectrum.to(dtype)
        self._kept: list[Tensor] = []
        if len(rows) * len(spectrum.values) * dtype.itemsize <= KEPT_BYTES:
            self._kept = [self._coordinates(members) for members in self._members]
            self.spectrum = self.spectrum.in_its_basis()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def folds(self) -> int:
        """Return the number of folds."""
        return len(self._members)

    def blocks(self, fold: int, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features and labels of the rows of a fold in blocks.

        Args:
            fold: the fold.
            columns: the number of logits of each row, which limits the rows of a block.
        """
        size = self._rows.block_rows(columns)
        features = torch.split(self._kept[fold], size) if self._kept else self._read(self._members[fold], columns)
        yield from zip(features, torch.split(self.labels[fold], size), strict=True)

    def _read(self, members: Tensor, columns: int) -> Iterator[Tensor]:
        for part in torch.split(members, self._rows.block_rows(columns)):
            yield self._rows.standardized(part).to(self.dtype)

    def _coordinates(self, members: Tensor) -> Tensor:
        vectors = self._spectrum.vectors
        blocks = map(self._rows.standardized, torch.split(members, self._rows.block_rows(1)))
        return torch.cat([(block if vectors is None else block @ vectors).to(self.dtype) for block in blocks])

    def standardized_heads(self, coordinates: Tensor) -> Tensor:
        """Return heads for standardised features, shape (heads, features + 1, classes), in the dtype of the rows.

        Args:
            coordinates: the heads' coordinates in the basis of the spectrum, shape (heads, rank + 1, classes).
        """
        return self._spectrum.heads(coordinates.to(self._rows.dtype))
