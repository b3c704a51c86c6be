"""Data module and loaders that yield cached features in the same order as an ImageDataModule yields its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from headstart.cache.segments import Rows
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.samplers import EpochSampler, drops_last

MEMORY_BYTES = 128 * 2**20  # maximum size of the features that are read into memory; larger splits stay mapped
PART_BYTES = 8 * 2**20  # size of a chunk that is read at once
EVALUATION_BYTES, EVALUATION_IMAGES = 16 * 2**20, 4096  # limits of an evaluation batch: no metric depends on its size


class FeatureTable:
    """The features and labels of a split, either memory-mapped or in the memory of a device.

    Args:
        rows: the cached rows: the first view of all images in order, then the second view, and so on.
        labels: label of each image, int64, shape (images,).

    Attributes:
        views: number of views of each image.
        features: all features, shape (views * images, width), or None until `read` is called.
    """

    def __init__(self, rows: Rows, labels: NDArray[np.int64]) -> None:
        self.rows = rows
        self.labels = torch.from_numpy(labels)
        self.views = len(rows) // max(1, len(labels))
        self.features: Tensor | None = None

    def read(self, device: torch.device) -> None:
        """Read all features, and move the labels, into the memory of a device."""
        rows = self.rows
        images = max(1, PART_BYTES // rows.row_bytes)
        first = torch.from_numpy(rows.take(np.arange(0)))
        self.features = torch.empty((len(rows), first.shape[1]), dtype=first.dtype, device=device)
        for start in range(0, len(rows), images):
            part = rows.take(np.arange(start, min(start + images, len(rows))))
            self.features[start : start + images] = torch.from_numpy(part)
        self.labels = self.labels.to(device)

    def batch(self, images: Tensor, view: int) -> Batch:
        """Return a batch of features and labels.

        Args:
            images: indices of the images, int64, on the CPU.
            view: index of the view.

        Returns:
            Features of shape (len(images), width) and labels of shape (len(images),), on the device of the features.
        """
        return self.rows_at(images + view * len(self.labels))

    def rows_at(self, rows: Tensor) -> Batch:
        """Return the features and labels of rows: those of all images in the first view, in the second, and so on."""
        images = rows % len(self.labels)
        if self.features is None:
            return torch.from_numpy(self.rows.take(rows.numpy())), self.labels[images]
        device = self.features.device
        return self.features[rows.to(device)], self.labels[images.to(device)]


class FeatureBatches:
    """An iterable of batches of features, which uses one view of the images in each epoch.

    Args:
        table: the features.
        order: sampler of the images. Lightning sets the epoch of a training sampler, and the epoch selects the view.
        batch_size: number of images in a batch.
        images: a loader of the same images in the same order, used after the backbone is unfrozen.
        unfrozen: returns whether the epoch that begins uses `images` instead of features.
    """

    def __init__(
        self,
        table: FeatureTable,
        order: EpochSampler | range,
        batch_size: int,
        images: DataLoader[Batch] | None = None,
        unfrozen: Callable[[], bool] = lambda: False,
    ) -> None:
        self.table, self.order, self.batch_size = table, order, batch_size
        self.images, self._unfrozen = images, unfrozen
        self.drop_last = False
        if isinstance(order, EpochSampler):
            self.sampler = order  # Lightning looks for this attribute and calls its set_epoch
            self.drop_last = drops_last(len(order), batch_size)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size) - self.drop_last

    def __iter__(self) -> Iterator[Batch]:
        if self.images is not None and self._unfrozen():  # only now is the epoch known: see `data.datamodule.Loader`
            yield from self.images
            return
        if isinstance(self.order, EpochSampler):
            order, _ = self.order.draw()
            view = self.order.epoch % self.table.views
        else:
            order, view = torch.arange(self.order.start, self.order.stop, self.order.step), 0
        for images in torch.split(order, self.batch_size)[: len(self)]:
            yield self.table.batch(images, view)


class FeatureBlocks:
    """An iterable of all rows of a table that one of several processes gets: every view of every image, in blocks.

    Every process has the same number of blocks, and no row is repeated.

    Args:
        table: the features.
        block_rows: about how many rows a block has.
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(self, table: FeatureTable, block_rows: int, rank: int, world: int) -> None:
        self.table = table
        self._rows = torch.arange(rank, len(table.rows), world)
        self._blocks = -(-len(table.rows) // (world * block_rows))

    def __len__(self) -> int:
        return self._blocks

    def __iter__(self) -> Iterator[Batch]:
        return map(self.table.rows_at, torch.tensor_split(self._rows, self._blocks))


class FeatureDataModule(pl.LightningDataModule):
    """A data module that replaces the images of an ImageDataModule by cached features, without worker processes.

    Batches are (features of shape (batch, width), int64 labels of shape (batch,)), or the batches of `images`. The
    smallest splits are read into the memory of `device` first. On a GPU they may take a quarter of its free memory, on
    the CPU `MEMORY_BYTES`; splits that do not fit stay memory-mapped.

    Args:
        images: the data module that defines splits, labels, order and training batch size.
        training: features of all views of the training images; None for evaluation only.
        evaluation: features of each split to evaluate, computed with the evaluation transform.
        device: device that trains.
        until_epoch: first epoch, counted from 0, that trains on the images because the backbone is unfrozen; None
            if the backbone stays frozen.

    Attributes:
        in_blocks: whether an epoch of training is one pass over the rows of all views, in blocks and in order, for a
            fitted head.
    """

    def __init__(
        self,
        images: ImageDataModule,
        training: Rows | None,
        evaluation: Mapping[str, Rows],
        device: torch.device,
        until_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.images, self.splits, self.until_epoch = images, images.splits, until_epoch
        self.in_blocks = False
        self._evaluation = {split: FeatureTable(rows, self.splits[split].labels) for split, rows in evaluation.items()}
        if training is None or training is evaluation.get("train"):
            self._training = self._evaluation.get("train")
        else:
            self._training = FeatureTable(training, self.splits["train"].labels)
        free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else MEMORY_BYTES
        memory = device if device.type == "cuda" else torch.device("cpu")
        tables = dict.fromkeys(table for table in (*self._evaluation.values(), self._training) if table)
        for table in sorted(tables, key=lambda table: len(table.rows)):
            if (size := len(table.rows) * table.rows.row_bytes) <= free:
                table.read(memory)
                free -= size

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Give the trainer to the wrapped data module, so that it selects the shard of this process."""
        self.images.trainer = self.trainer

    @property
    def training_table(self) -> FeatureTable:
        """Return the features of all views of the training images."""
        assert self._training is not None
        return self._training

    @property
    def evaluation_table(self) -> FeatureTable:
        """Return the features of the training images with the evaluation transform."""
        return self._evaluation["train"]

    def train_dataloader(self) -> FeatureBatches | FeatureBlocks:
        """Return a loader of the training split in random order: features, or images once the backbone is unfrozen."""
        assert self._training is not None
        if self.in_blocks:
            rows = max(1, EVALUATION_BYTES // self._training.rows.row_bytes)
            return FeatureBlocks(self._training, rows, *self.images.shard)
        assert self.images.batch_size is not None
        if self.until_epoch is not None:
            return self._staged(self._training, self.images.train_dataloader(), self.images.batch_size)
        return FeatureBatches(self._training, self.images.training_sampler(), self.images.batch_size)

    def val_dataloader(self) -> FeatureBatches | tuple[()]:
        """Return a loader of the validation split in order: features, or images once the backbone is unfrozen.

        Without that split there is no loader, and Lightning leaves validation out.
        """
        if "val" not in self.splits:
            return ()
        if self.until_epoch is not None:
            size = self.images.evaluation_batch_size
            return self._staged(self._evaluation["val"], self.images.evaluation_dataloader("val"), size)
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> FeatureBatches:
        """Return a loader of the test split's features in order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> FeatureBatches:
        """Return a loader of any split's features in order, without augmentation, in large batches."""
        table = self._evaluation[split]
        size = min(max(1, EVALUATION_BYTES // table.rows.row_bytes), EVALUATION_IMAGES)
        return FeatureBatches(table, self.images.evaluation_sampler(split), size)

    def _staged(self, table: FeatureTable, images: DataLoader[Batch], batch_size: int) -> FeatureBatches:
        """Return a loader that switches from features to images; both have the same order and number of batches."""
        assert isinstance(images.sampler, EpochSampler | range)
        return FeatureBatches(table, images.sampler, batch_size, images, self._unfrozen)

    def _unfrozen(self) -> bool:
        assert self.trainer is not None
        assert self.until_epoch is not None
        return self.trainer.current_epoch >= self.until_epoch
