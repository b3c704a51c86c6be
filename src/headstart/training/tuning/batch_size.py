"""Batch size finder for `batch_size=auto`: the size at which a device trains fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import lightning.pytorch as pl
import torch

from headstart.config.data_schema import USUAL_BATCH
from headstart.data.datamodule import Batch
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.trial_steps import TrialTrainer, preserve_random_states
from headstart.utils.errors import ConfigError
from headstart.utils.progress import progress_bar, shows_progress

SMALLEST, LARGEST = 8, 1024
# A CPU that runs out of memory swaps, or the kernel kills the process, so no batch is larger than the default, which a
# machine has to fit anyway.
LARGEST_ON_CPU = USUAL_BATCH
# With few steps per epoch, a model learns little: batches of 2 to 32 generalise best (Masters & Luschi,
# arXiv:1804.07612). With a few hundred images, even batches of 32 leave only a handful of steps.
STEPS_PER_EPOCH = 20
GROWTH = 1.05  # a batch twice as large must process at least this many times as many images per second
TRIAL_LR = 1e-3  # learning rate of the trial steps, whose result is discarded
GPU_FRACTION = 0.8  # of the free memory; other libraries, evaluation and fragmentation need the rest
# At least TIMED steps of each size are timed, for at least SECONDS in all. Timing stops after LONG seconds even with
# fewer steps, as the times of long steps hardly vary.
TIMED, SECONDS, LONG = 3, 0.3, 2.0


@dataclass(frozen=True)
class BatchSize:
    """The result of a search for the batch size.

    Attributes:
        size: the batch size to train with.
        speeds: batch size -> images per second, for every size that was measured.
        reason: why no larger size was chosen.
        seconds: how long the search took.
    """

    size: int
    speeds: Mapping[int, float]
    reason: str
    seconds: float

    def __str__(self) -> str:
        speeds = ", ".join(f"{speed:,.0f} with {size}" for size, speed in self.speeds.items())
        return f"{self.size} ({self.reason}; images per second: {speeds}; {self.seconds:.0f} s)"


def best_batch_size(
    classifier: TransferClassifier, trainer: pl.Trainer, *, image_size: int, train_images: int
) -> BatchSize:
    """Find the batch size that trains fastest, by training a copy of the classifier on random images.

    The batch size is doubled until that is no faster, does not fit into a GPU's memory, or leaves too few steps per
    epoch. On a CPU it is at most `LARGEST_ON_CPU`. Afterwards the classifier and the random states of torch, numpy and
    Python are bit for bit what they were before.

    Args:
        classifier: the classifier, with its backbone.
        trainer: the Trainer that will train it.
        image_size: the height and width of its images, in pixels.
        train_images: the number of training images of this process, divided by the number of batches that are
            accumulated. Unless it is very small, an epoch keeps at least `STEPS_PER_EPOCH` optimizer steps.

    Raises:
        ConfigError: not even the smallest batch fits into the GPU's memory.
    """
    start, device = time.perf_counter(), trainer.strategy.root_device
    largest = LARGEST_ON_CPU if device.type == "cpu" else LARGEST
    sizes = candidate_sizes(train_images, largest)
    best, speeds = 0, dict[int, float]()
    reason = f"a larger batch would leave fewer than {STEPS_PER_EPOCH} steps per epoch"
    if sizes[-1] == largest:
        reason = f"the largest that is tried on {device}"
    shown = shows_progress(trainer)
    with preserve_random_states(), progress_bar("Finding the batch size", len(sizes), shown=shown) as advance:
        trial = TrialTrainer(classifier, trainer, lr=TRIAL_LR)
        limit = _memory_limit(device)
        for size in sizes:
            speed = images_per_second(trial, random_batch(trial, size, image_size))
            if speed is None or _peak_memory(device) > limit:
                reason = f"{size} would take too much memory"
                break
            speeds[size] = speed
            if best and speed < GROWTH * speeds[best]:
                reason = f"{size} are no faster"
                break
            best = size
            advance(1)
        del trial
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not best:
        raise ConfigError(
            f"batch_size=auto: not even {sizes[0]} images of {image_size} × {image_size} pixels fit into the memory of "
            f"{device}. Take smaller images (data.image_size), a smaller model, or trainer.precision=16-mixed."
        )
    return BatchSize(best, speeds, reason, time.perf_counter() - start)


def candidate_sizes(train_images: int, largest: int) -> list[int]:
    """Return the batch sizes to try in ascending order: powers of two from `SMALLEST` to `largest`.

    With fewer than `SMALLEST` images, BatchNorm's statistics and the gradients are too noisy.

    Args:
        train_images: see `best_batch_size`.
        largest: the largest size, a power of two.

    Returns:
        `SMALLEST` and the larger sizes that leave at least `STEPS_PER_EPOCH` steps per epoch. With fewer than
        `SMALLEST` images, only the largest power of two up to their number, at least 2.
    """
    most = max(train_images // STEPS_PER_EPOCH, min(SMALLEST, train_images), 2)  # BatchNorm needs two
    powers = [2**power for power in range(1, largest.bit_length()) if 2**power <= most]
    return [size for size in powers if size >= SMALLEST] or powers[-1:]


def random_batch(trial: TrialTrainer, size: int, image_size: int) -> Batch:
    """Return normally distributed images, float32, shape (size, 3, image_size, image_size), with random labels."""
    classes = len(trial.classifier.class_names)
    images = torch.randn(size, 3, image_size, image_size, device=trial.device)
    return images, torch.randint(classes, (size,), device=trial.device)


def images_per_second(trial: TrialTrainer, batch: Batch) -> float | None:
    """Measure the speed of training steps, without reading images, by the median time of a step.

    Returns:
        Images per second; None if the GPU runs out of memory.
    """
    seconds: list[float] = []
    try:
        trial.step(batch)  # warm-up: allocates memory and chooses kernels
        while sum(seconds) < (SECONDS if len(seconds) >= TIMED else LONG):
            start = time.perf_counter()
            trial.step(batch)
            if trial.device.type == "cuda":
                torch.cuda.synchronize(trial.device)
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    return len(batch[1]) / median(seconds)


def _memory_limit(device: torch.device) -> float:
    """Return how many bytes of a GPU's memory PyTorch may reserve; other devices have no limit."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    return GPU_FRACTION * (free + torch.cuda.memory_reserved(device))


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
