"""LightningDataModule, Dataset and DataLoader for the splits of every data source."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.config.data_schema import USUAL_BATCH
from headstart.data.dataset import Samples
from headstart.data.image_io import decode_image, read_bytes
from headstart.data.loading_times import Stopwatch
from headstart.data.preprocessing import Transform, without_normalisation
from headstart.data.samplers import EpochSampler, ShareSampler, drops_last
from headstart.data.workers import begin_worker, default_workers
from headstart.utils.errors import DataError

Batch = tuple[Tensor, Tensor]


def open_image(samples: Samples, index: int) -> Image.Image:
    """Return one image as upright RGB.

    Args:
        samples: the images.
        index: which of them.

    Raises:
        DataError: the image cannot be read.
    """
    return _decode(samples, index, _read(samples, index))


def _read(samples: Samples, index: int) -> bytes | NDArray[np.uint8]:
    image = samples.images[index]
    return read_bytes(image) if isinstance(image, str) else image


def _decode(samples: Samples, index: int, data: bytes | NDArray[np.uint8]) -> Image.Image:
    if isinstance(data, bytes):
        return decode_image(data, str(samples.images[index]))
    return Image.fromarray(np.ascontiguousarray(data))


class Prepared(NamedTuple):
    """Images to which the first steps of a transform have already been applied.

    Attributes:
        read: a function from the index of an image to the output of these steps.
        transform: the remaining steps.
    """

    read: Callable[[int], Image.Image]
    transform: Transform


class ImageDataset(Dataset[Any]):
    """A map-style dataset that applies one transform to the images of one split.

    The key of an item is its index or (index, seed). With a seed, torch's generator is seeded before the transform:
    an augmented view then depends on the seed, not on the number of workers.

    Args:
        samples: the images and their labels.
        transform: the transform that turns an image into a tensor.
        stopwatch: adds up the seconds that the images take; None measures nothing.
        read: returns the image at an index, in place of reading its file; see `Prepared`.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Transform,
        stopwatch: Stopwatch | None = None,
        read: Callable[[int], Image.Image] | None = None,
    ) -> None:
        self.samples, self.transform, self.stopwatch, self.read = samples, transform, stopwatch, read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        if isinstance(key, int):
            return self._item(key)
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            # Only the default generator: `torch.manual_seed` would also seed the GPUs and take 0.1 ms.
            torch.default_generator.manual_seed(seed)
            return self._item(index)

    def _item(self, index: int) -> tuple[Tensor, int]:
        start = time.perf_counter()
        data = _read(self.samples, index) if self.read is None else self.read(index)
        read = time.perf_counter()
        image = data if isinstance(data, Image.Image) else _decode(self.samples, index, data)
        decoded = time.perf_counter()
        item = self.transform(image)
        if self.stopwatch:
            self.stopwatch.add(read - start, decoded - read, time.perf_counter() - decoded)
        return item, int(self.samples.labels[index])


def class_weights(kind: str | None, samples: Samples, num_classes: int) -> Tensor | None:
    """Compute the weights of the classes in the training loss.

    Args:
        kind: "balanced" gives N / (classes × N of the class), as in scikit-learn; None gives no weights.
        samples: the training images.
        num_classes: number of classes.

    Returns:
        A float32 tensor of shape (num_classes,), or None.
    """
    if kind is None:
        return None
    counts = torch.bincount(torch.from_numpy(samples.labels), minlength=num_classes)
    return len(samples) / (num_classes * counts.clamp(min=1).float())


class Loader(DataLoader[Batch]):
    """A DataLoader that starts its workers only when the first batch is requested.

    Lightning calls `iter` before it sets the epoch of the sampler. If workers started then, the first epoch of a
    resumed run would have the images of another epoch.
    """

    def __iter__(self) -> Any:
        """Yield the batches of an epoch."""
        yield from super().__iter__()


class ImageDataModule(pl.LightningDataModule):
    """A data module with one DataLoader for each split of a data source.

    Batches are (images of shape (batch, 3, height, width), int64 labels of shape (batch,)). Images are uint8 if the
    transform ends with the normalisation, which the classifier then does on its device. Otherwise they are float32.

    Args:
        splits: "train", "val" and optionally "test", as `make_splits` returns them; any of them for evaluation only.
        training: the transform of training images, which may be random.
        evaluation: the transform of images outside training.
        batch_size: images in a training batch on each device; None until it is known, before training.
        evaluation_batch_size: images in a batch outside training; None uses `batch_size`, or the default while
            that is not known.
        num_workers: processes that decode and transform. None uses 0 for small images in memory, and otherwise
            `default_workers(processes)`.
        processes: training processes on this machine, each with its own loaders.
        seed: seed of the order and the augmentation of training images.
        balanced: draw training images of every class equally often, with replacement, rather than each image once.
    """

    def __init__(
        self,
        splits: Mapping[str, Samples],
        *,
        training: Transform,
        evaluation: Transform,
        batch_size: int | None = None,
        evaluation_batch_size: int | None = None,
        num_workers: int | None = None,
        processes: int = 1,
        seed: int = 0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.splits = dict(splits)
        self.training, self.evaluation = training, evaluation
        self._prepared_training: Prepared | None = None
        self._prepared: Mapping[str, Prepared] = {}
        self.batch_size, self.seed, self.balanced = batch_size, seed, balanced
        self._evaluation_batch_size = evaluation_batch_size
        images = next(iter(splits.values())).images
        small = isinstance(images, np.ndarray) and images.shape[1] < 64  # starting workers would take longer
        chosen = 0 if small else default_workers(processes)
        self.num_workers = chosen if num_workers is None else num_workers

    @property
    def evaluation_batch_size(self) -> int:
        """Return the number of images in a batch outside training."""
        return self._evaluation_batch_size or self.batch_size or USUAL_BATCH

    def take_prepared(self, training: Prepared, evaluation: Mapping[str, Prepared]) -> None:
        """Make loaders that are created from now on read prepared images.

        Args:
            training: the training images, after some steps of the training transform.
            evaluation: the images of each split, after some steps of the evaluation transform.
        """
        self._prepared_training, self._prepared = training, evaluation

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of training images in random order with the training transform."""
        assert self.batch_size is not None
        sampler = self.training_sampler(*self._share())
        drop_last = drops_last(len(sampler), self.batch_size)
        stopwatch = None if self._prepared_training else Stopwatch(self.num_workers)  # it times reading and decoding
        dataset = self._dataset("train", self._prepared_training, self.training, stopwatch)
        return self._loader(dataset, sampler, self.batch_size, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of validation images in order with the evaluation transform."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of test images in order with the evaluation transform."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
        """Return a loader of any split, including "train", in order with the evaluation transform.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.splits:
            raise DataError(f"these data have no {split} split; there are {', '.join(self.splits)}.")
        rank, world = self._share()
        dataset = self._dataset(split, self._prepared.get(split), self.evaluation)
        sampler = ShareSampler(len(self.splits[split]), rank=rank, world=world)
        return self._loader(dataset, sampler, self.evaluation_batch_size)

    def training_sampler(self, rank: int, world: int) -> EpochSampler:
        """Return the sampler of the training images for process `rank` of `world` processes."""
        labels = torch.from_numpy(self.splits["train"].labels)
        weights = 1 / torch.bincount(labels)[labels].double() if self.balanced else None
        return EpochSampler(len(labels), self.seed, weights=weights, rank=rank, world=world)

    def _share(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes, which select its shard of the images."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _dataset(
        self, split: str, prepared: Prepared | None, transform: Transform, stopwatch: Stopwatch | None = None
    ) -> ImageDataset:
        read, left = prepared or (None, transform)
        return ImageDataset(self.splits[split], without_normalisation(left), stopwatch, read)

    def _loader(
        self, dataset: ImageDataset, sampler: Sampler[Any], batch_size: int, *, drop_last: bool = False
    ) -> DataLoader[Batch]:
        return Loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=begin_worker,
            pin_memory=torch.cuda.is_available(),
            # A separate generator, so that starting workers does not advance the one that dropout uses.
            generator=torch.Generator(),
        )
