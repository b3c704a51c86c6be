"""Images that are decoded once: resized uint8 pixels, mapped from disk, in the place of files."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.cache.disk import GIGABYTE, IMAGES, writable_cache_folder
from headstart.cache.fill import Digests, Request, Shelf, complete, image_digests
from headstart.cache.fingerprints import code_sha256
from headstart.cache.store import Rows
from headstart.data.batch_augmentation import BatchAugmentation
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.image_io import decode_image
from headstart.data.preprocessing import Preprocessing, Transform, normalisation, pixel_transform
from headstart.data.samplers import EpochSampler, ShareSampler, drops_last

log = logging.getLogger(__name__)
CLAIMED = 32  # images that a process reserves at once, and at most loses when it is killed
AHEAD = 2  # batches that are read while the network works on another one

Render = Callable[[Tensor, int], Tensor]  # from uint8 rows (batch, width) and a seed to what the network sees


def decoded_images(
    data: ImageDataModule,
    preprocessing: Preprocessing,
    augment: Mapping[str, Any],
    *,
    device: torch.device,
    max_gb: float,
    show_progress: bool,
) -> DecodedDataModule | None:
    """All images of a data module in the cache, decoded as far as they are not there yet.

    Every image is kept as the pixels that evaluation sees. Training images of which augmentation takes random parts are
    kept whole besides.

    Args:
        data: the images.
        preprocessing: what the weights expect.
        augment: the name of the augmentation and its settings, as `training_transform` takes them.
        device: where batches go and are augmented.
        max_gb: gigabytes (10^9 bytes) that decoded images may have in the cache.
        show_progress: show bars.

    Returns:
        Their loaders, or None, with a warning, if the images are too many for the cache.

    Raises:
        DataError: an image that cannot be read, or a disk that is full.
    """
    cache, limit = writable_cache_folder(), int(max_gb * GIGABYTE)
    augmentation = BatchAugmentation(preprocessing, device, **augment)
    digests = image_digests(data.splits, cache, show_progress=show_progress)
    side = preprocessing.crop
    evaluation = _request(pixel_transform(preprocessing), f"{side} × {side} for evaluation", data.splits, digests)
    wanted = [(Shelf(cache, 3 * side**2, torch.uint8, IMAGES), evaluation)]
    if whole := augmentation.whole:
        training = _request(whole, f"whole, up to {whole.pixels:,} pixels", ["train"], digests)
        wanted.append((Shelf(cache, whole.row_bytes, torch.uint8, IMAGES), training))

    if (size := sum(shelf.size([request]) for shelf, request in wanted)) > limit:
        log.warning(
            "the decoded images take %.2g GB, more than data.cache_gb=%.2g: they are read anew every epoch. Raise "
            "data.cache_gb.",
            size / GIGABYTE,
            max_gb,
        )
        return None
    rows = []
    for shelf, request in wanted:
        shelf.make_room([request], limit)
        of_splits, _ = complete(
            shelf,
            request,
            data,
            _as_rows,
            batch_size=CLAIMED,
            device=None,
            bar="Decoding images",
            show_progress=show_progress,
        )
        rows.append(of_splits)
    return DecodedDataModule(data, rows[-1]["train"], rows[0], preprocessing, augmentation, device)


def _request(transform: Transform, kind: str, splits: Any, digests: Digests) -> Request:
    assert isinstance(transform, nn.Module)
    about = {"decoded": kind, "code_sha256": code_sha256(transform, decode_image)}
    return Request(transform, about, dict.fromkeys(splits, 1), digests)


def _as_rows(images: Tensor, _: object) -> NDArray[np.uint8]:
    rows: NDArray[np.uint8] = images.flatten(1).numpy()
    return rows


class DecodedBatches:
    """Batches read from the map, the next ones while the network works on this one.

    Args:
        rows: of the split's images, in order.
        labels: int64, of shape (images,).
        order: the images of an epoch, and the seed of each where there is one.
        batch_size: images in a batch.
        render: from rows to images on the device.
        device: where batches go.
    """

    def __init__(
        self,
        rows: Rows,
        labels: NDArray[np.int64],
        order: EpochSampler | ShareSampler,
        batch_size: int,
        render: Render,
        device: torch.device,
    ) -> None:
        self.rows, self.labels, self.order, self.batch_size = rows, labels, order, batch_size
        self.render, self.device = render, device
        self.drop_last = False
        if isinstance(order, EpochSampler):
            self.sampler = order  # by this name Lightning finds it, and tells it the epoch
            self.drop_last = drops_last(len(order), batch_size)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size) - self.drop_last

    def __iter__(self) -> Iterator[Batch]:
        drawn = [key if isinstance(key, tuple) else (key, 0) for key in self.order]
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        # A thread is enough: copying rows releases the interpreter, and processes would copy once more.
        with ThreadPoolExecutor(1) as thread:
            reading = (thread.submit(self._read, drawn[start : start + self.batch_size]) for start in starts)
            ahead = deque(islice(reading, AHEAD))
            while ahead:
                rows, labels, seed = ahead.popleft().result()
                ahead.extend(islice(reading, 1))
                yield self.render(rows, seed), labels.to(self.device, non_blocking=True)

    def _read(self, drawn: list[tuple[int, int]]) -> tuple[Tensor, Tensor, int]:
        """Rows, labels, and the seed of a batch: that of its first image."""
        indices = np.array([index for index, _ in drawn], dtype=np.int64)
        # Only from pinned memory does a copy to a GPU not keep the process waiting.
        rows = torch.empty((len(drawn), self.rows.width), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self.rows.take(indices, out=rows.numpy())
        return rows, torch.from_numpy(self.labels[indices]), drawn[0][1]


class DecodedDataModule(pl.LightningDataModule):
    """The loaders of an ImageDataModule, from decoded images and without worker processes.

    Args:
        images: whose batches these are, by split, batch size, order and labels.
        training: rows of the training images, as the augmentation takes them.
        evaluation: rows of every split's images: the pixels that evaluation sees.
        preprocessing: what the weights expect.
        augmentation: of training images.
        device: where batches go.

    Batches are (float32 images of shape (batch, 3, height, width), int64 labels of shape (batch,)) on the device.
    """

    def __init__(
        self,
        images: ImageDataModule,
        training: Rows,
        evaluation: Mapping[str, Rows],
        preprocessing: Preprocessing,
        augmentation: BatchAugmentation,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.images, self.splits = images, images.splits
        self._training, self._evaluation = training, evaluation
        self._augmentation, self._device = augmentation, device
        self._shape = (3, preprocessing.crop, preprocessing.crop)
        self._normalise = normalisation(preprocessing)

    def train_dataloader(self) -> DecodedBatches:
        """Training images in random order, augmented."""
        labels = self.splits["train"].labels
        rank, world = self._share()
        sampler = self.images.training_sampler(rank, world)
        return DecodedBatches(self._training, labels, sampler, self.images.batch_size, self._augmentation, self._device)

    def val_dataloader(self) -> DecodedBatches:
        """Validation images in order."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DecodedBatches:
        """Test images in order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> DecodedBatches:
        """Images of any split in order, without augmentation."""
        labels = self.splits[split].labels
        rank, world = self._share()
        sampler = ShareSampler(len(labels), rank=rank, world=world)
        size = self.images.evaluation_batch_size
        return DecodedBatches(self._evaluation[split], labels, sampler, size, self._as_evaluated, self._device)

    def _as_evaluated(self, rows: Tensor, _: int) -> Tensor:
        return self._normalise(rows.to(self._device, non_blocking=True).view(-1, *self._shape))

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
