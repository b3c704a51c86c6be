"""Times training: waiting for batches, moving them, computing; says which settings would make it faster."""

from __future__ import annotations

import math
import time
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
FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # what Lightning calls asking for a batch
MOVE = ".transfer_batch_to_device"  # how its names for moving one end
SHORT_S = 2.0  # of training: below, starting takes more of it than any setting would save
# Of a step, as a plain rule: below, most is overhead. Lightning takes 1.15 ms of a step without any work
# (benchmarks/README.md), and the optimizer, metrics and callbacks come on top.
TINY_S = 0.01
GROWTH = 8  # of the batch that is proposed: beyond, a run has to be tuned anew


class StepClock(Profiler):
    """Marks where the stages of each training step end, as Lightning tells its profiler.

    A GPU works behind Python's back. Its marks are events in its stream, read when the epoch has ended, so that no
    step is waited for. A stage then takes what the GPU spent on it, or was idle before it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._on_gpu = device.type == "cuda"
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forgets the last epoch; waiting for the first batch begins here."""
        self._marks = [("", self._now())]  # which stage ended, and when

    def start(self, action_name: str) -> None:
        """Ends a step where the next batch is asked for."""
        if action_name == FETCH and len(self._marks) > 1:
            self.end(COMPUTE)

    def stop(self, action_name: str) -> None:
        """Ends a stage; batches of validation, which are moved too, are in none."""
        if action_name == FETCH:
            self.end(WAITING)
        elif action_name.endswith(MOVE) and self._marks[-1][0] == WAITING:
            self.end(TRANSFER)

    def end(self, stage: str) -> None:
        """Notes that a stage ends now."""
        self._marks.append((stage, self._now()))

    def seconds(self) -> dict[str, float]:
        """Adds up the seconds of each stage in the epoch."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        found = dict.fromkeys(STAGES, 0.0)
        for (_, start), (stage, end) in pairwise(self._marks):
            found[stage] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return found

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class TrainingProfiler(pl.Callback):
    """Times each epoch's training and logs it.

    Logs `time/epoch_s`, validation included, and of training `time/images_per_s` and the shares `time/waiting` (for the
    next batch), `time/transfer` (of a batch to the device) and `time/compute` (all the rest), which add up to 1.

    Attributes:
        seconds: of each stage, without validation; where a head trains first, on cached features, of what follows.
        steps: of each process in that time.
        images: seen by all processes together.
        on_features: whether batches were cached features.
        loading: seconds of reading, decoding and transforming, all of the loader's processes together; None where
            batches are features or decoded images.
    """

    def __init__(self) -> None:
        self._forget(on_features=False)
        self.loading: tuple[float, ...] | None = None

    def _forget(self, *, on_features: bool) -> None:
        self.on_features, self.steps, self.images = on_features, 0, 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """Returns what metrics.json has of it."""
        return {f"time/{stage}": round(share, 4) for stage, share in shares(self.seconds).items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begins to listen."""
        self.device, self.processes = trainer.strategy.root_device, trainer.num_devices
        self._clock = StepClock(self.device)
        trainer.profiler = self._clock  # type: ignore[attr-defined]  # Lightning sets it out of mypy's sight

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._start, self._epoch_images = time.perf_counter(), 0
        self._clock.begin_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Batch, ___: int) -> None:
        """Counts the batch; the step ends here if no other follows."""
        on_features = batch[0].ndim == 2
        if on_features != self.on_features:
            self._forget(on_features=on_features)
        self.steps += 1
        self.images += len(batch[1]) * trainer.world_size
        self._epoch_images += len(batch[1]) * trainer.world_size
        self._clock.end(COMPUTE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch and adds it to the others."""
        seconds = self._clock.seconds()
        self.seconds = {stage: self.seconds[stage] + seconds[stage] for stage in STAGES}
        if trainer.loggers and self._epoch_images:
            rate = self._epoch_images / sum(seconds.values())
            figures = {"epoch_s": time.perf_counter() - self._start, "images_per_s": rate, **shares(seconds)}
            pl_module.log_dict({f"time/{name}": torch.tensor(value) for name, value in figures.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Asks the loader how long its images took."""
        loader = getattr(trainer.train_dataloader, "images", trainer.train_dataloader)  # features may come before them
        watch = getattr(getattr(loader, "dataset", None), "stopwatch", None)
        self.loading = tuple(watch.seconds.sum(dim=0).tolist()) if watch else None


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Computes the share of each stage; they add up to 1. There are none of no time."""
    whole = sum(seconds.values())
    return {stage: part / whole for stage, part in seconds.items()} if whole else {}


def verdict(timed: TrainingProfiler, config: Config, data: ImageDataModule, strategy: Strategy) -> str:
    """Says in one line how many images a second were seen, what took most of the time and which settings would help.

    Of a run that took no step, such as one that is resumed when it has ended, there is nothing to say.
    """
    whole = sum(timed.seconds.values())
    if not whole:
        return ""
    line = f"speed: {timed.images / whole:,.0f} images/s"
    if whole < SHORT_S:
        return f"{line}; {whole:.1f} s of training are too short to gain much"
    share, longest = max((share, stage) for stage, share in shares(timed.seconds).items())
    step_s = timed.seconds[COMPUTE] / timed.steps
    if longest == WAITING:
        what, remedies = _waiting(timed, config, data, strategy)
    elif longest == TRANSFER:
        what, remedies = f"{share:.0%} of training moves images to the device", _smaller(strategy)
    elif step_s < TINY_S and config.data.batch_size != AUTO:  # which has tried larger ones
        what = f"the batch is small: most of a step of {1000 * step_s:.1f} ms is overhead"
        larger = larger_batch(data.batch_size, step_s, len(data.splits["train"]))
        remedies = [f"batch_size={larger}", "batch_size=auto"] if larger else []
    else:
        what = f"the {'head' if timed.on_features else 'network'}: {share:.0%} of the time it computes"
        remedies = _computing(timed, config, strategy)
    *others, last = remedies or [""]
    return f"{line}; {what}" + (f": {', '.join(others)}{' or ' if others else ''}{last}" if last else "")


def _waiting(
    timed: TrainingProfiler, config: Config, data: ImageDataModule, strategy: Strategy
) -> tuple[str, list[str]]:
    share, loading = shares(timed.seconds)[WAITING], timed.loading
    if timed.on_features:
        return f"{share:.0%} of training waits for features", []
    most = default_workers(timed.processes)
    workers = [f"data.num_workers={most}"] if data.num_workers < most else []
    if loading is None:
        return f"{share:.0%} of training reads and augments decoded images", ["a cheaper augment", *workers]
    what = f"{share:.0%} of training waits for images, most of it"
    if data.num_workers and sum(loading) < timed.seconds[WAITING] / 2:
        return f"{what} for the worker processes that hand them over", ["data.num_workers=0"]
    longest = loading.index(max(loading))
    doing = ("reading from the disk", "decoding", "transforming")[longest]
    local = ["a copy on a local disk"] if longest == 0 else []
    decoded = ["data.cache=decoded (each is decoded once)"] if config.data.cache != "decoded" else []
    return f"{what} {doing}", [*_once(config, strategy), *local, *decoded, *workers]


def _computing(timed: TrainingProfiler, config: Config, strategy: Strategy) -> list[str]:
    remedies = ["trainer=gpu"] if timed.device.type == "cpu" and torch.cuda.is_available() else []
    if timed.device.type == "cuda" and config.trainer.precision == "32-true":
        remedies.append(f"trainer.precision={'bf16' if torch.cuda.is_bf16_supported() else '16'}-mixed")
    if timed.on_features:
        return remedies
    if config.model.weights is not None and strategy.freeze is not True:
        remedies.append("freeze=true" if config.finetune.name == "none" else "finetune=none freeze=true")
    return [*remedies, *_once(config, strategy), *_smaller(strategy)]


def _once(config: Config, strategy: Strategy) -> list[str]:
    mixed = config.augment.mixup or config.augment.cutmix  # which mix images, not features
    recomputed = strategy.freeze is True and not isinstance(config.features, CachedFeatures) and not mixed
    return ["features=auto (the backbone runs once)"] if recomputed else []


def _smaller(strategy: Strategy) -> list[str]:
    one_size = "vit" in strategy.backbone.description["name"]  # whose position embeddings are made for it
    return [] if one_size else ["a smaller data.image_size"]


def larger_batch(batch_size: int, step_s: float, train_size: int) -> int | None:
    """Computes the power of two at which a step that grew along with the batch would no longer be tiny.

    It is at most `GROWTH` times the batch and leaves an epoch four steps; None if that is no more than there is.
    """
    larger = 2 ** math.ceil(math.log2(batch_size * min(TINY_S / step_s, GROWTH)))
    while larger > min(GROWTH * batch_size, train_size // 4):
        larger //= 2
    return larger if larger > batch_size else None
