"""LightningDataModule, Dataset and DataLoader for the splits of every data source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.config.data_schema import USUAL_BATCH
from headstart.data.dataset import Samples
from headstart.data.image_io import decode_image, read_bytes
from headstart.data.loading_times import LoadingTimes
from headstart.data.preprocessing import Transform, without_normalisation
from headstart.data.samplers import EpochSampler, drops_last
from headstart.data.workers import default_workers, exit_with_parent
from headstart.utils.errors import DataError

Batch = tuple[Tensor, Tensor]


class CachedImages(NamedTuple):
    """Decoded images, to which the first steps of a transform have already been applied.

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
        loading_times: adds up the seconds that the images take; None measures nothing.
        read: returns the image at an index, instead of reading its file; see `CachedImages`.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Transform,
        loading_times: LoadingTimes | None = None,
        read: Callable[[int], Image.Image] | None = None,
    ) -> None:
        self.samples, self.transform, self.loading_times, self.read = samples, transform, loading_times, read

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
        source = self.read(index) if self.read else self.samples.images[index]
        data = read_bytes(source) if isinstance(source, str) else source
        read = time.perf_counter()
        if isinstance(data, bytes):
            image = decode_image(data, str(source))
        else:
            image = data if isinstance(data, Image.Image) else Image.fromarray(np.ascontiguousarray(data))
        decoded = time.perf_counter()
        item = self.transform(image)
        if self.loading_times:
            self.loading_times.add(read - start, decoded - read, time.perf_counter() - decoded)
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
        splits: "train" and optionally "val" and "test", as `make_splits` returns them; any of them for evaluation only.
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
        self._cached_training: CachedImages | None = None
        self._cached_evaluation: Mapping[str, CachedImages] = {}
        self.batch_size, self.seed, self.balanced = batch_size, seed, balanced
        self._evaluation_batch_size = evaluation_batch_size
        images = next(iter(splits.values())).images
        small = isinstance(images, np.ndarray) and images.shape[1] < 64  # starting workers would take longer
        default = 0 if small else default_workers(processes)
        self.num_workers = default if num_workers is None else num_workers

    @property
    def evaluation_batch_size(self) -> int:
        """Return the number of images in a batch outside training."""
        return self._evaluation_batch_size or self.batch_size or USUAL_BATCH

    def use_cached_images(self, training: CachedImages, evaluation: Mapping[str, CachedImages]) -> None:
        """Make loaders that are created from now on read cached images.

        Args:
            training: the training images, after some steps of the training transform.
            evaluation: the images of each split, after some steps of the evaluation transform.
        """
        self._cached_training, self._cached_evaluation = training, evaluation

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of training images in random order with the training transform."""
        assert self.batch_size is not None
        sampler = self.training_sampler()
        read, transform = self._cached_training or (None, self.training)
        times = None if read else LoadingTimes(self.num_workers)  # of reading and decoding files
        dataset = ImageDataset(self.splits["train"], without_normalisation(transform), times, read)
        return self._loader(dataset, sampler, self.batch_size, drop_last=drops_last(len(sampler), self.batch_size))

    def val_dataloader(self) -> DataLoader[Batch] | tuple[()]:
        """Return a loader of validation images in order with the evaluation transform; without them, no loader.

        Lightning then leaves validation out.
        """
        return self.evaluation_dataloader("val") if "val" in self.splits else ()

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
        read, transform = self._cached_evaluation.get(split) or (None, self.evaluation)
        dataset = ImageDataset(self.splits[split], without_normalisation(transform), read=read)
        return self._loader(dataset, self.evaluation_sampler(split), self.evaluation_batch_size)

    def training_sampler(self) -> EpochSampler:
        """Return the sampler of this process's shard of the training images."""
        labels = torch.from_numpy(self.splits["train"].labels)
        weights = 1 / torch.bincount(labels)[labels].double() if self.balanced else None
        return EpochSampler(len(labels), self.seed, weights=weights, rank=self._rank, world=self._world)

    def evaluation_sampler(self, split: str) -> range:
        """Return the indices of this process's shard of a split, in order.

        Unlike torch's DistributedSampler it repeats no image, so that metrics over all processes count each image once.
        """
        return range(self._rank, len(self.splits[split]), self._world)

    @property
    def shard(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        return self._rank, self._world

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(
        self, dataset: ImageDataset, sampler: Iterable[Any], batch_size: int, *, drop_last: bool = False
    ) -> DataLoader[Batch]:
        return Loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=exit_with_parent,
            pin_memory=torch.cuda.is_available(),
            # A separate generator, so that starting workers does not advance the one that dropout uses.
            generator=torch.Generator(),
        )
