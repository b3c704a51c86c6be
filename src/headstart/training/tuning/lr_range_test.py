"""The learning-rate range test (Smith, arXiv:1506.01186, arXiv:1803.09820): what `lr=auto` is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from numpy.typing import NDArray

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.samplers import EpochSampler, mixed_seed
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.trial_steps import Rehearsal, random_states_kept
from headstart.utils.errors import ConfigError
from headstart.utils.files import csv_text
from headstart.utils.progress import progress_bar

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
STILL = 10  # steps at rates so low that the loss stays where it starts
SMOOTHING = 0.8  # weight of what was before in the mean of losses: five steps, which are 0.4 of a power of ten
DIVERGED = 4.0  # times the lowest smoothed loss
# The rate at which the loss has fallen by this share of its whole fall. See benchmarks/README.md: the steepest place
# (fastai's, and Lightning's) is decided by the noise of single batches, and is anywhere where the loss falls slowly.
FALLEN = 0.8
LEAST_FALL, NOISE = 0.01, 1.5  # of the first loss, and of the deviation of its batches: what falls less may be noise
HEADER = ("rate", "loss", "smoothed_loss")
Values = NDArray[np.float64]
Batches = ImageDataModule | FeatureDataModule


@dataclass(frozen=True)
class RangeTest:
    """What a range test has found.

    Attributes:
        lr: the rate to train with, of two digits.
        rates: of each step, shape (steps,).
        losses: of each step's batch, before the step.
        smoothed: running means of them.
        seconds: how long it took.
    """

    lr: float
    rates: Values
    losses: Values
    smoothed: Values
    seconds: float

    def __str__(self) -> str:
        return f"{self.lr:g} (range test of {len(self.rates)} steps, {self.seconds:.0f} s)"

    def csv(self) -> str:
        """The curve as a csv: a row for each step."""
        return csv_text([HEADER, *zip(self.rates, self.losses, self.smoothed, strict=True)])


def lr_range_test(
    classifier: TransferClassifier,
    data: Batches,
    *,
    device: torch.device,
    precision: Precision,
    gradient_clip: float | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> RangeTest:
    """Trains a copy of a classifier at rates that rise exponentially from `LOWEST` to `HIGHEST`, and watches the loss.

    The classifier, and the random states of torch, numpy and Python, are afterwards what they were, bit for bit; the
    data module gives a loader of its own. Epochs are repeated as long as it takes. It ends early when the loss
    diverges. Groups of parameters keep their ratios to the optimizer's own rate (`optimizer.defaults["lr"]`), which is
    the one that rises.

    Args:
        classifier: in any state; its optimizer's rate does not matter.
        data: the training images, or their features for a classifier without its backbone.
        device: where it will be trained.
        precision: the Trainer's plugin.
        gradient_clip: the Trainer's `gradient_clip_val`.
        seed: of dropout; the same gives the same rate on a CPU.
        show_progress: show a bar.

    Raises:
        ConfigError: the loss is not finite from the start, or falls at no rate.
    """
    start = time.perf_counter()
    rates, losses = np.geomspace(LOWEST, HIGHEST, STEPS), list[float]()
    with random_states_kept(), progress_bar("Looking for the learning rate", STEPS, shown=show_progress) as advance:
        torch.manual_seed(mixed_seed("learning rates", seed))
        rehearsal = Rehearsal(classifier, device, precision, lr=1.0, gradient_clip=gradient_clip)
        groups, own_rate = rehearsal.optimizer.param_groups, rehearsal.optimizer.defaults["lr"]
        ratios = [group["lr"] / own_rate for group in groups]
        for rate, batch in zip(rates, islice(batches_of(data), STEPS), strict=True):
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] = float(rate * ratio)
            losses.append(rehearsal.step(batch))
            means = smooth(losses)
            if not means[-1] <= DIVERGED * means.min():  # nor is it where it is NaN
                break
            advance(1)
    finite = np.isfinite(losses)
    rates, curve, means = rates[: len(losses)][finite], np.array(losses)[finite], means[finite]
    return RangeTest(suggested(rates, curve, means), rates, curve, means, time.perf_counter() - start)


def batches_of(data: Batches) -> Iterator[Batch]:
    """Training batches without end, epoch by epoch, from a loader whose workers end with it."""
    loader = data.train_dataloader()
    sampler = loader.sampler
    for epoch in count():
        assert isinstance(sampler, EpochSampler)
        sampler.set_epoch(epoch)
        yield from loader


def smooth(losses: list[float]) -> Values:
    """Exponential running means, in which the first losses have no smaller weight (Kingma & Ba's correction)."""
    means, mean = [], 0.0
    for steps, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**steps))
    return np.array(means)


def suggested(rates: Values, losses: Values, smoothed: Values) -> float:
    """The rate at which the smoothed loss has fallen by `FALLEN` of its whole fall, rounded to two digits.

    Raises:
        ConfigError: see `lr_range_test`.
    """
    if len(losses) < STILL:
        raise ConfigError(
            f"lr=auto: the loss is not finite at rates next to nothing, after {len(losses)} steps. No rate will do: "
            f"look for weights that are not finite, or try trainer.precision=32-true."
        )
    lowest = int(smoothed.argmin())
    first, last = float(losses[:STILL].mean()), float(smoothed[lowest])
    if first - last < max(LEAST_FALL * first, NOISE * float(losses[:STILL].std())):
        raise ConfigError(
            f"lr=auto: the loss falls at no rate from {LOWEST:g} to {rates[-1]:.2g}: it begins at {first:.3g}, and "
            f"{last:.3g} is the lowest in {len(rates)} steps. Are the labels right (headstart look)? If they are, the "
            f"network learns too slowly for this test, or single batches say too little: give a number, such as "
            f"lr=1e-3, or a larger batch_size."
        )
    above = np.flatnonzero(smoothed[: lowest + 1] >= first - FALLEN * (first - last))
    place = int(above[-1]) if len(above) else 0
    return float(f"{rates[place]:.1e}")
