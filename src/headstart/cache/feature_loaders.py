"""Batches of features, in the order in which an ImageDataModule has its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.cache.store import Rows
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.samplers import EpochSampler, drops_last

MEMORY_BYTES = 128 * 2**20  # of features that are read into memory, all splits together; more stay mapped
PART_BYTES = 8 * 2**20  # that are read at once
EVALUATION_BYTES, EVALUATION_IMAGES = 16 * 2**20, 4096  # of a batch outside training: no figure depends on its size


class FeatureTable:
    """The features of a split: in memory, on the device, or mapped.

    Args:
        rows: on disk: all images in order, as often as there are views.
        labels: int64, of shape (images,).
    """

    def __init__(self, rows: Rows, labels: NDArray[np.int64]) -> None:
        self.rows = rows
        self.labels = torch.from_numpy(labels)
        self.views = len(rows) // max(1, len(labels))
        self.features: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes of all features."""
        return len(self.rows) * self.rows.row_bytes

    def read(self, device: torch.device) -> None:
        """Reads all features into the memory of a device."""
        rows = self.rows
        images = max(1, PART_BYTES // rows.row_bytes)
        first = torch.from_numpy(rows.take(np.arange(0)))
        self.features = torch.empty((len(rows), first.shape[1]), dtype=first.dtype, device=device)
        for start in range(0, len(rows), images):
            part = rows.take(np.arange(start, min(start + images, len(rows))))
            self.features[start : start + images] = torch.from_numpy(part)
        self.labels = self.labels.to(device)

    def batch(self, images: Tensor, view: int) -> Batch:
        """Features of shape (len(images), width) of one view of these images, and labels of shape (len(images),)."""
        rows = images + view * len(self.labels)
        if self.features is None:
            return torch.from_numpy(self.rows.take(rows.numpy())), self.labels[images]
        device = self.features.device
        return self.features[rows.to(device)], self.labels[images.to(device)]


class TrainingBatches:
    """Batches in random order; epoch e takes view e modulo the number of views.

    Args:
        table: the features.
        sampler: the order of the images; Lightning tells it the epoch.
        batch_size: images in a batch.
    """

    def __init__(self, table: FeatureTable, sampler: EpochSampler, batch_size: int) -> None:
        self.table, self.sampler, self.batch_size = table, sampler, batch_size
        self.drop_last = drops_last(len(sampler), batch_size)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size) - self.drop_last

    def __iter__(self) -> Iterator[Batch]:
        order, _ = self.sampler.draw()
        view = self.sampler.epoch % self.table.views
        for images in torch.split(order, self.batch_size)[: len(self)]:
            yield self.table.batch(images, view)


class EvaluationBatches:
    """Batches in order.

    Args:
        table: the features, of one view.
        rank: of this process, which takes every `world`-th image.
        world: how many processes there are.
        batch_size: images in a batch; None takes large ones.
    """

    def __init__(self, table: FeatureTable, *, rank: int, world: int, batch_size: int | None = None) -> None:
        self.table = table
        size = batch_size or min(max(1, EVALUATION_BYTES // table.rows.row_bytes), EVALUATION_IMAGES)
        mine = torch.arange(len(table.labels))[rank::world]
        self.batches = torch.split(mine, size) if len(mine) else ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self.table.batch(images, 0) for images in self.batches)


class FeatureDataModule(pl.LightningDataModule):
    """The loaders of an ImageDataModule, with features in the place of images and without worker processes.

    Args:
        images: whose batches these are, by split, batch size, order and labels.
        training: features of the training images' views; None to evaluate only.
        evaluation: features of the splits that are evaluated, through the evaluation transform.
        device: where training runs; the features go there as long as they fit into a quarter of its free memory, or
            into `MEMORY_BYTES` of the CPU's.

    Batches are (features of shape (batch, width), int64 labels of shape (batch,)).
    """

    def __init__(
        self, images: ImageDataModule, training: Rows | None, evaluation: Mapping[str, Rows], device: torch.device
    ) -> None:
        super().__init__()
        self.images, self.splits = images, images.splits
        self._evaluation = {split: FeatureTable(rows, self.splits[split].labels) for split, rows in evaluation.items()}
        if training is None or training is evaluation.get("train"):
            self._training = self._evaluation.get("train")
        else:
            self._training = FeatureTable(training, self.splits["train"].labels)
        free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else MEMORY_BYTES
        place = device if device.type == "cuda" else torch.device("cpu")
        tables = {id(table): table for table in (*self._evaluation.values(), self._training) if table}
        for table in sorted(tables.values(), key=lambda table: table.size):
            if table.size <= free:
                table.read(place)
                free -= table.size

    def train_dataloader(self) -> TrainingBatches:
        """Training features in random order."""
        assert self._training is not None
        rank, world = self._share()
        return TrainingBatches(self._training, self.images.training_sampler(rank, world), self.images.batch_size)

    def val_dataloader(self) -> EvaluationBatches:
        """Validation features in order."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> EvaluationBatches:
        """Test features in order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str, batch_size: int | None = None) -> EvaluationBatches:
        """Features of any split in order, without augmentation; in large batches, if their size is not said."""
        rank, world = self._share()
        return EvaluationBatches(self._evaluation[split], rank=rank, world=world, batch_size=batch_size)

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
