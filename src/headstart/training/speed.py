"""How fast a run trains, and where its time goes: waiting for batches, moving them, computing."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler

from headstart.cache.feature_loaders import FeatureBatches
from headstart.data.datamodule import Batch
from headstart.training.bottleneck import Measures
from headstart.training.probe import fixed_share

# The stages of a step. The last is what the network's two passes leave: the optimizer's step, and what Lightning does.
WAITING, TRANSFER, NETWORK, REST = range(4)
STAGES = 4
FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # what Lightning calls asking for a batch


class StepClock(Profiler):
    """Marks where the stages of each training step end, as Lightning tells its profiler.

    On a GPU, which works behind Python's back, marks are events in its stream. They are read when the epoch has ended,
    so that no step is waited for; what a stage takes is then what the GPU has spent on it, or idle before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marks: list[Any] = []
        self._end: Any = None
        self._on_gpu = False
        self._ends: dict[str, int] = {}

    def attend(self, trainer: pl.Trainer) -> None:
        """Listens to a trainer that is about to fit."""
        trainer.profiler = self  # type: ignore[attr-defined]  # Lightning sets it out of mypy's sight
        self._on_gpu = trainer.strategy.root_device.type == "cuda"
        module, data, strategy = (
            type(part).__name__
            for part in (trainer.lightning_module, trainer.datamodule, trainer.strategy)  # type: ignore[attr-defined]
        )
        self._ends = {
            FETCH: WAITING,
            f"[LightningModule]{module}.transfer_batch_to_device": TRANSFER,
            f"[LightningDataModule]{data}.transfer_batch_to_device": TRANSFER,
            f"[Strategy]{strategy}.backward": NETWORK,
        }

    def start(self, action_name: str) -> None:
        """Ends a step where the next batch is asked for; the first one's waiting begins with the epoch."""
        if action_name == FETCH and len(self._marks) % STAGES == 0:
            self._marks.append(self._now())

    def stop(self, action_name: str) -> None:
        """Ends a stage; batches of validation, which are moved too, are in no stage."""
        stage = self._ends.get(action_name)
        if stage is not None and len(self._marks) % STAGES == stage + 1:
            self._marks.append(self._now())

    def begin_epoch(self) -> None:
        """Forgets the last epoch."""
        self._marks, self._end = [self._now()], None

    def end_step(self) -> None:
        """Notes what is the end of training if no other step follows."""
        self._end = self._now()

    def seconds(self) -> list[float]:
        """Seconds of each stage in the epoch, all steps together."""
        found = [0.0] * STAGES
        if self._end is None:
            return found
        if self._on_gpu:
            self._end.synchronize()
        complete = self._marks[: len(self._marks) // STAGES * STAGES]
        for number, (start, end) in enumerate(pairwise([*complete, self._end])):
            found[number % STAGES] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return found

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class Speed(pl.Callback):
    """Measures each epoch's training and logs it, and once at the end what of a step does not grow with the batch.

    Logs `time/epoch_s`, validation included, and of training `time/images_per_s` and the shares `time/waiting` (for the
    next batch), `time/transfer` (of a batch to the device) and `time/compute` (all the rest), which add up to 1.

    Attributes:
        measures: of the whole training, once it has ended with a step taken; where the head is trained first, on kept
            features, of what follows.
    """

    def __init__(self) -> None:
        self.measures: Measures | None = None
        self._clock = StepClock()
        self._start = 0.0
        self._images = 0  # of this epoch, all processes together
        self._totals, self._all_images, self._steps = [0.0] * STAGES, 0, 0
        self._sample: Batch | None = None
        self._batch_size = 0

    @property
    def figures(self) -> dict[str, float]:
        """What metrics.json has of it."""
        return (
            {f"time/{name}": round(share, 4) for name, share in self.measures.shares.items()} if self.measures else {}
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begins to listen."""
        self._clock.attend(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._start, self._images = time.perf_counter(), 0
        self._clock.begin_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Batch, ___: int) -> None:
        """Counts the batch."""
        self._images += len(batch[1]) * trainer.world_size
        self._steps += 1
        if self._sample is None or self._sample[0].ndim != batch[0].ndim:  # features before, images from now on
            self._totals, self._all_images, self._steps = [0.0] * STAGES, 0, 1
            self._sample, self._batch_size = (batch[0][:1].clone(), batch[1][:1].clone()), len(batch[1])
        self._clock.end_step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch."""
        stages = self._clock.seconds()
        self._totals = [total + seconds for total, seconds in zip(self._totals, stages, strict=True)]
        self._all_images += self._images
        if trainer.loggers and self._images and sum(stages):
            figures = {
                "epoch_s": time.perf_counter() - self._start,
                "images_per_s": self._images / sum(stages),
                **shares(stages),
            }
            pl_module.log_dict({f"time/{name}": torch.tensor(value) for name, value in figures.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the epochs together."""
        if self._sample is None or not sum(self._totals):
            return
        loader = trainer.train_dataloader
        loader = loader.images if isinstance(loader, FeatureBatches) else loader
        watch = getattr(getattr(loader, "dataset", None), "stopwatch", None)
        measures = Measures(
            images=self._all_images,
            seconds=sum(self._totals),
            **shares(self._totals),
            loading=None if watch is None else tuple(watch.seconds.sum(dim=0).tolist()),
        )
        if measures.longest == "compute" and not measures.short and trainer.is_global_zero:
            network, rest = self._totals[NETWORK], self._totals[REST]
            step = network / self._steps
            inside = fixed_share(pl_module, self._sample, self._batch_size, step, trainer.precision_plugin)
            measures = replace(measures, fixed=(rest + network * inside) / (rest + network))
        self.measures, self._sample = measures, None


def shares(stages: list[float]) -> dict[str, float]:
    """Shares of the time by name; they add up to 1."""
    whole = sum(stages)
    waiting, transfer = stages[WAITING] / whole, stages[TRANSFER] / whole
    return {"waiting": waiting, "transfer": transfer, "compute": 1 - waiting - transfer}
