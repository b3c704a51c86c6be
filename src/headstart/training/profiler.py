"""Profiler that measures where training time goes, and suggests settings that would make training faster."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler

from headstart.config.ranges import AUTO
from headstart.config.schema import CachedFeatures, Config
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.workers import default_workers
from headstart.models.unfreezing import Strategy

WAITING, TRANSFER, COMPUTE = STAGES = ("waiting", "transfer", "compute")
FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name of the action that gets the next batch
MOVE = ".transfer_batch_to_device"  # the end of Lightning's names of the action that moves a batch to the device
UNTIMED = nullcontext()
SHORT_S = 2.0  # seconds of training; in a shorter run, startup takes more time than any setting would save
# Seconds. A rule of thumb: most of a shorter step is overhead. Lightning alone takes 1.15 ms for an empty step
# (benchmarks/README.md), and the optimizer, metrics and callbacks add to that.
TINY_S = 0.01
GROWTH = 8  # largest factor of a suggested batch size; beyond it, the learning rate would have to be tuned again


class StepClock(Profiler):
    """A Lightning profiler that records when each stage of a training step ends.

    The stages are waiting for a batch, its transfer to the device, and computing. A GPU runs asynchronously, so its
    times are CUDA events, read only at the end of the epoch: no step is synchronised. The time of a stage then includes
    the time for which the GPU was idle before it.

    Args:
        device: the device that trains; CUDA devices are timed by CUDA events, all others by `time.perf_counter`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._on_gpu = device.type == "cuda"
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Reset the clock for a new epoch, which begins with waiting for the first batch."""
        self._marks = [("", self._now())]  # (stage that ended, time)

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Return a context that clocks an action; one that does nothing for the eighty actions that end no stage.

        Lightning's own context, a generator, takes as long as some of these actions.
        """
        return super().profile(action_name) if action_name == FETCH or action_name.endswith(MOVE) else UNTIMED

    def start(self, action_name: str) -> None:
        """End the stage of computing when the next batch is requested."""
        if action_name == FETCH and len(self._marks) > 1:
            self.end(COMPUTE)

    def stop(self, action_name: str) -> None:
        """End the stage of waiting or of the transfer; transfers of validation batches are not counted."""
        if action_name == FETCH:
            self.end(WAITING)
        elif action_name.endswith(MOVE) and self._marks[-1][0] == WAITING:
            self.end(TRANSFER)

    def end(self, stage: str) -> None:
        """Record that a stage ends now."""
        self._marks.append((stage, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the total seconds of each stage in this epoch; on a GPU, wait for the last step to finish."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        seconds = dict.fromkeys(STAGES, 0.0)
        for (_, start), (stage, end) in pairwise(self._marks):
            seconds[stage] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class TrainingProfiler(pl.Callback):
    """A callback that measures and logs the training speed of each epoch.

    It logs `time/epoch_s`, which includes validation, and `time/images_per_s`, which does not. It also logs the
    fractions of training time `time/waiting` (for the next batch), `time/transfer` (of a batch to the device) and
    `time/compute` (everything else). They add up to 1.

    If the head is first trained alone on cached features, the attributes describe only the training that follows.

    Attributes:
        seconds: the total seconds of each stage, without validation.
        steps: the number of training steps of each process in that time.
        images: the number of images seen by all processes together.
        on_features: whether the batches were cached features.
        loading: the seconds spent reading, decoding and transforming, summed over all workers of the DataLoader; None
            if the batches are features or decoded images.
    """

    def __init__(self) -> None:
        self._reset(on_features=False)
        self.loading: tuple[float, ...] | None = None

    def _reset(self, *, on_features: bool) -> None:
        self.on_features, self.steps, self.images = on_features, 0, 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the fraction of time of each stage, named as in metrics.json."""
        return {f"time/{stage}": round(fraction, 4) for stage, fraction in fractions(self.seconds).items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Install a new `StepClock` as the Trainer's profiler."""
        self.device, self.processes = trainer.strategy.root_device, trainer.num_devices
        self._clock = StepClock(self.device)
        trainer.profiler = self._clock  # type: ignore[attr-defined]  # mypy cannot see this attribute

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start timing the epoch."""
        self._start, self._epoch_images = time.perf_counter(), 0
        self._clock.begin_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Batch, ___: int) -> None:
        """Count the batch and its images, and end the step, which may be the last one of the epoch."""
        on_features = batch[0].ndim == 2
        if on_features != self.on_features:
            self._reset(on_features=on_features)
        self.steps += 1
        self.images += len(batch[1]) * trainer.world_size
        self._epoch_images += len(batch[1]) * trainer.world_size
        self._clock.end(COMPUTE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the times of the epoch and add them to the totals."""
        seconds = self._clock.seconds()
        self.seconds = {stage: self.seconds[stage] + seconds[stage] for stage in STAGES}
        if trainer.loggers and self._epoch_images:
            rate = self._epoch_images / sum(seconds.values())
            values = {"epoch_s": time.perf_counter() - self._start, "images_per_s": rate, **fractions(seconds)}
            pl_module.log_dict({f"time/{name}": torch.tensor(value) for name, value in values.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Read from the DataLoader how long reading, decoding and transforming took."""
        loader = getattr(trainer.train_dataloader, "images", trainer.train_dataloader)  # after features
        watch = getattr(getattr(loader, "dataset", None), "loading_times", None)
        self.loading = tuple(watch.seconds.sum(dim=0).tolist()) if watch else None


def fractions(seconds: dict[str, float]) -> dict[str, float]:
    """Compute the fraction of time of each stage; an empty dict if the total is 0."""
    total = sum(seconds.values())
    return {stage: part / total for stage, part in seconds.items()} if total else {}


def describe_speed(profiler: TrainingProfiler, config: Config, datamodule: ImageDataModule, strategy: Strategy) -> str:
    """Describe the training speed, the bottleneck and the settings that would help.

    Returns:
        One line; empty if no step was taken, as when a run that has ended is resumed.
    """
    total = sum(profiler.seconds.values())
    if not total:
        return ""
    line = f"speed: {profiler.images / total:,.0f} images/s"
    if total < SHORT_S:
        return f"{line}; {total:.1f} s of training are too short to gain much"
    fraction, longest = max((fraction, stage) for stage, fraction in fractions(profiler.seconds).items())
    step_s = profiler.seconds[COMPUTE] / profiler.steps
    if longest == WAITING:
        cause, remedies = _waiting(profiler, config, datamodule, strategy)
    elif longest == TRANSFER:
        cause, remedies = f"{fraction:.0%} of training moves images to the device", _smaller_images(strategy)
    elif step_s < TINY_S and config.data.batch_size != AUTO:  # auto has already tried larger ones
        assert datamodule.batch_size is not None
        cause = f"the batch is small: most of a step of {1000 * step_s:.1f} ms is overhead"
        larger = larger_batch(datamodule.batch_size, step_s, len(datamodule.splits["train"]))
        remedies = [f"batch_size={larger}", "batch_size=auto"] if larger else []
    else:
        cause = f"{fraction:.0%} of training is the {'head' if profiler.on_features else 'network'} computing"
        remedies = _computing(profiler, config, strategy)
    *others, last = remedies or [""]
    return f"{line}; {cause}" + (f": {', '.join(others)}{' or ' if others else ''}{last}" if last else "")


def _waiting(
    profiler: TrainingProfiler, config: Config, datamodule: ImageDataModule, strategy: Strategy
) -> tuple[str, list[str]]:
    fraction, loading = fractions(profiler.seconds)[WAITING], profiler.loading
    if profiler.on_features:
        return f"{fraction:.0%} of training waits for features", []
    most = default_workers(profiler.processes)
    workers = [f"data.num_workers={most}"] if datamodule.num_workers < most else []
    if loading is None:
        return f"{fraction:.0%} of training reads and augments decoded images", ["a cheaper augment", *workers]
    cause = f"{fraction:.0%} of training waits for images, most of it"
    if datamodule.num_workers and sum(loading) < profiler.seconds[WAITING] / 2:
        return f"{cause} for the worker processes that hand them over", ["data.num_workers=0"]
    slowest = loading.index(max(loading))
    activity = ("reading from the disk", "decoding", "transforming")[slowest]
    local = ["a copy on a local disk"] if slowest == 0 else []
    decoded = ["data.cache=decoded (each is decoded once)"] if config.data.cache != "decoded" else []
    return f"{cause} {activity}", [*_cached_features(config, strategy), *local, *decoded, *workers]


def _computing(profiler: TrainingProfiler, config: Config, strategy: Strategy) -> list[str]:
    remedies = ["trainer=gpu"] if profiler.device.type == "cpu" and torch.cuda.is_available() else []
    if profiler.device.type == "cuda" and config.trainer.precision == "32-true":
        remedies.append(f"trainer.precision={'bf16' if torch.cuda.is_bf16_supported() else '16'}-mixed")
    if profiler.on_features:
        return remedies
    if config.model.weights is not None and strategy.freeze is not True:
        remedies.append("freeze=true" if config.finetune.name == "none" else "finetune=none freeze=true")
    return [*remedies, *_cached_features(config, strategy), *_smaller_images(strategy)]


def _cached_features(config: Config, strategy: Strategy) -> list[str]:
    mixed = config.loss.mixes
    recomputed = strategy.freeze is True and not isinstance(config.features, CachedFeatures) and not mixed
    return ["features=auto (the backbone runs once)"] if recomputed else []


def _smaller_images(strategy: Strategy) -> list[str]:
    return [] if strategy.backbone.fixed_size else ["a smaller data.image_size"]


def larger_batch(batch_size: int, step_s: float, train_size: int) -> int | None:
    """Compute a larger batch size at which most of a step is no longer overhead.

    It assumes that the time of a step grows in proportion to the batch size, up to `TINY_S`.

    Args:
        batch_size: the present batch size.
        step_s: the seconds of a step at that size, without waiting or transfer.
        train_size: the number of training images.

    Returns:
        A power of two, at most `GROWTH` times the batch size, that leaves at least four steps per epoch; None if no
        such number is larger than the batch size.
    """
    larger = 2 ** math.ceil(math.log2(batch_size * min(TINY_S / step_s, GROWTH)))
    while larger > min(GROWTH * batch_size, train_size // 4):
        larger //= 2
    return larger if larger > batch_size else None
