"""Batch size finder for `batch_size=auto`: the size at which a device trains fastest."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from headstart.data.datamodule import Batch
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.trial_steps import Rehearsal, random_states_kept
from headstart.utils.errors import ConfigError
from headstart.utils.progress import progress_bar

SMALLEST, LARGEST = 8, 1024
# With few steps per epoch, a model learns little: batches of 2 to 32 generalise best (Masters & Luschi,
# arXiv:1804.07612). With a few hundred images, even batches of 32 leave only a handful of steps.
STEPS_AN_EPOCH = 20
GROWTH = 1.05  # a batch twice as large must process at least this many times as many images per second
TRIAL_LR = 1e-3  # learning rate of the trial steps, whose result is discarded
USUAL_MEMORY = 8 * 2**30  # bytes, assumed if the system does not report its memory
GPU_SHARE = 0.8  # fraction of the free memory; other libraries, evaluation and fragmentation need the rest
CPU_SHARE = 0.25  # fraction of the machine's memory; the DataLoader's workers and their images need the rest
# At least TIMED steps of each size are timed, for at least SECONDS in all. Timing stops after LONG seconds even with
# fewer steps, as the times of long steps hardly vary.
TIMED, SECONDS, LONG = 3, 0.3, 2.0


@dataclass(frozen=True)
class BatchSize:
    """The result of a search for the batch size.

    Attributes:
        size: the batch size to train with. Twice as many images would be less than 5 % faster, or not be possible.
        speeds: batch size -> images per second, for every size that was measured.
        reason: why no larger size was chosen.
        seconds: how long the search took.
    """

    size: int
    speeds: Mapping[int, float]
    reason: str
    seconds: float

    def __str__(self) -> str:
        tried = ", ".join(f"{speed:,.0f} with {size}" for size, speed in self.speeds.items())
        return f"{self.size} ({self.reason}; images a second: {tried}; {self.seconds:.0f} s)"


def best_batch_size(
    classifier: TransferClassifier,
    *,
    image_size: int,
    train_images: int,
    device: torch.device,
    precision: Precision,
    gradient_clip: float | None = None,
    show_progress: bool = False,
) -> BatchSize:
    """Find the batch size that trains fastest, by training a copy of the classifier on random images.

    The batch size is doubled until that is no faster, does not fit into memory, or leaves too few steps per epoch.
    Afterwards the classifier and the random states of torch, numpy and Python are bit for bit what they were before.

    Args:
        classifier: the classifier, with its backbone.
        image_size: the height and width of its images, in pixels.
        train_images: the number of training images of this process, divided by the number of batches that are
            accumulated. Unless it is very small, an epoch keeps at least `STEPS_AN_EPOCH` optimizer steps.
        device: the device that will train it.
        precision: the Trainer's precision plugin.
        gradient_clip: the Trainer's `gradient_clip_val`.
        show_progress: show a progress bar.

    Returns:
        The batch size, with the speed of every size that was tried.

    Raises:
        ConfigError: not even the smallest batch fits into the device's memory.
    """
    start = time.perf_counter()
    sizes = sizes_for(train_images)
    best, reason = 0, f"more would leave fewer than {STEPS_AN_EPOCH} steps an epoch"
    speeds: dict[int, float] = {}
    with random_states_kept(), progress_bar("Looking for the batch size", len(sizes), shown=show_progress) as advance:
        rehearsal = Rehearsal(classifier, device, precision, lr=TRIAL_LR, gradient_clip=gradient_clip)
        fits = Memory(rehearsal, image_size).fits
        for size in sizes:
            speed = images_a_second(rehearsal, random_batch(rehearsal, size, image_size)) if fits(size) else None
            if speed is None or not fits(size):
                reason = f"{size} would take too much memory"
                break
            speeds[size] = speed
            if best and speed < GROWTH * speeds[best]:
                reason = f"{size} are no faster"
                break
            best = size
            advance(1)
        del rehearsal, fits
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not best:
        raise ConfigError(
            f"batch_size=auto: not even {sizes[0]} images of {image_size} × {image_size} pixels fit into the memory of "
            f"{device}. Take smaller images (data.image_size), a smaller model, or trainer.precision=16-mixed."
        )
    return BatchSize(best, speeds, reason, time.perf_counter() - start)


def sizes_for(train_images: int) -> list[int]:
    """Return the batch sizes to try: powers of two from `SMALLEST` to `LARGEST`.

    With fewer than `SMALLEST` images, BatchNorm's statistics and the gradients are too noisy.

    Args:
        train_images: see `best_batch_size`.

    Returns:
        In ascending order, `SMALLEST` and the larger sizes that leave at least `STEPS_AN_EPOCH` steps per epoch. With
        fewer than `SMALLEST` images, only the largest power of two up to their number, at least 2.
    """
    most = max(train_images // STEPS_AN_EPOCH, min(SMALLEST, train_images), 2)  # BatchNorm needs two
    powers = [2**power for power in range(1, LARGEST.bit_length()) if 2**power <= most]
    return [size for size in powers if size >= SMALLEST] or powers[-1:]


def random_batch(rehearsal: Rehearsal, size: int, image_size: int) -> Batch:
    """Return a batch of random images and labels, on the device.

    Returns:
        Images of normally distributed noise, float32, shape (size, 3, image_size, image_size); and int64 labels, shape
        (size,).
    """
    classes = len(rehearsal.classifier.class_names)
    images = torch.randn(size, 3, image_size, image_size, device=rehearsal.device)
    return images, torch.randint(classes, (size,), device=rehearsal.device)


def images_a_second(rehearsal: Rehearsal, batch: Batch) -> float | None:
    """Measure the speed of training steps: forward pass, backward pass and optimizer step, without reading images.

    Returns:
        Images per second, by the median time of a step; None if the GPU runs out of memory.
    """
    seconds: list[float] = []
    try:
        rehearsal.step(batch)  # warm-up: allocates memory and chooses kernels
        while sum(seconds) < (SECONDS if len(seconds) >= TIMED else LONG):
            start = time.perf_counter()
            rehearsal.step(batch)
            if rehearsal.device.type == "cuda":
                torch.cuda.synchronize(rehearsal.device)
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    return len(batch[1]) / median(seconds)


class Memory:
    """Tell which batch sizes fit into the memory of the device.

    On a GPU, the peak of the memory that PyTorch has reserved is compared with the limit. On a CPU, a batch that is too
    large would make the machine swap or kill the process. There the bytes per image that a step saves for its
    backward pass are measured once, with a batch of two. On other devices every size fits.

    Args:
        rehearsal: a copy of the classifier, which takes a step on a CPU.
        image_size: the height and width of the images, in pixels.
    """

    def __init__(self, rehearsal: Rehearsal, image_size: int) -> None:
        self.device = rehearsal.device
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            self.room = GPU_SHARE * (free + torch.cuda.memory_reserved(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            self.room = CPU_SHARE * memory_bytes()
            self.per_image = kept_bytes(rehearsal, random_batch(rehearsal, 2, image_size)) / 2

    def fits(self, size: int) -> bool:
        """Tell whether a batch of this size fits; on a GPU, whether all batches tried so far did."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) <= self.room
        return self.device.type != "cpu" or size * self.per_image <= self.room


def kept_bytes(rehearsal: Rehearsal, batch: Batch) -> int:
    """Take a training step, and return the bytes of the tensors, without parameters, saved for its backward pass."""
    parameters = {parameter.data_ptr() for parameter in rehearsal.classifier.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rehearsal.step(batch)
    return sum(kept.values())


def memory_bytes() -> int:
    """Return the machine's memory in bytes, or the limit of the container (cgroup v2) if that is lower."""
    if not hasattr(os, "sysconf"):  # Windows
        return USUAL_MEMORY
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # not in a container, or no limit ("max")
        return machine
