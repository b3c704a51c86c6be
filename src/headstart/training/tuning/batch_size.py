"""The batch size that a device trains fastest with: what `batch_size=auto` is."""

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
# Few steps an epoch learn little: batches of 2 to 32 generalise best (Masters & Luschi, arXiv:1804.07612), and of a
# few hundred images even 32 leave a handful of steps.
STEPS_AN_EPOCH = 20
GROWTH = 1.05  # a batch twice as large has to be faster by this
TRIAL_LR = 1e-3  # of steps whose result is thrown away
USUAL_MEMORY = 8 * 2**30  # bytes, where the system does not say how much it has
GPU_SHARE = 0.8  # of the free memory: other libraries, evaluation and fragments need the rest
CPU_SHARE = 0.25  # of the machine's memory: workers and their images need theirs
# Steps of each size that are timed, and for how many seconds at least; a slow network takes fewer steps, as one that
# lasts so long is not to be mistaken.
TIMED, SECONDS, LONG = 3, 0.3, 2.0


@dataclass(frozen=True)
class BatchSize:
    """What was measured.

    Attributes:
        size: the smallest that is about as fast as the fastest.
        speeds: images a second of each size that was tried.
        reason: why no larger one was taken.
        seconds: how long it took.
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
    """Trains a copy of a classifier on random images, in batches twice as large each time, until that is no faster.

    The classifier and the random states of torch, numpy and Python are afterwards what they were, bit for bit.

    Args:
        classifier: with its backbone.
        image_size: side of its images, in pixels.
        train_images: how many of them this process has; an epoch keeps about `STEPS_AN_EPOCH` steps.
        device: where it will be trained.
        precision: the Trainer's plugin.
        gradient_clip: the Trainer's `gradient_clip_val`.
        show_progress: show a bar.

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
    """The sizes to try: powers of two, from `SMALLEST`, that leave `STEPS_AN_EPOCH`; a smaller one of fewer images.

    Statistics of BatchNorm over fewer than `SMALLEST` images are noise, as are their gradients.
    """
    most = max(train_images // STEPS_AN_EPOCH, min(SMALLEST, train_images), 2)  # BatchNorm needs two
    powers = [2**power for power in range(1, LARGEST.bit_length()) if 2**power <= most]
    return [size for size in powers if size >= SMALLEST] or powers[-1:]


def random_batch(rehearsal: Rehearsal, size: int, image_size: int) -> Batch:
    """Images of noise, float32 of shape (size, 3, image_size, image_size), and labels, on the device."""
    classes = len(rehearsal.classifier.class_names)
    images = torch.randn(size, 3, image_size, image_size, device=rehearsal.device)
    return images, torch.randint(classes, (size,), device=rehearsal.device)


def images_a_second(rehearsal: Rehearsal, batch: Batch) -> float | None:
    """How fast training is: forward, backward and step, without reading images. None: the GPU's memory is too small."""
    seconds: list[float] = []
    try:
        rehearsal.step(batch)  # which allocates, and chooses kernels
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
    """The memory that batches may take.

    A GPU is asked what it has given; a CPU's machine would swap, or kill the process, before it told: there the size of
    what a step keeps for its backward pass is counted, once.
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
        """Whether a batch leaves room to spare: on a GPU, the largest that has been tried."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) <= self.room
        return self.device.type != "cpu" or size * self.per_image <= self.room


def kept_bytes(rehearsal: Rehearsal, batch: Batch) -> int:
    """What a step keeps for its backward pass besides parameters, in bytes."""
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
    """The machine's memory, or what a container may have of it."""
    if not hasattr(os, "sysconf"):  # Windows
        return USUAL_MEMORY
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return machine
