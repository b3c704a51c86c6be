"""Learning-rate range test (LR finder) for `lr=auto` (Smith, arXiv:1506.01186, arXiv:1803.09820)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from headstart.cache.feature_loaders import FeatureBlocks, FeatureDataModule
from headstart.data.datamodule import Batch, ImageDataModule
from headstart.data.samplers import EpochSampler, mixed_seed
from headstart.training.classifier import TransferClassifier
from headstart.training.tuning.trial_steps import TrialTrainer, preserve_random_states
from headstart.utils.errors import ConfigError
from headstart.utils.files import csv_text
from headstart.utils.progress import progress_bar, shows_progress

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
FLAT = 10  # number of the first steps, at learning rates so low that the loss does not change
SMOOTHING = 0.8  # decay of the moving average, which spans five steps: a factor of 10^0.4 in the learning rate
DIVERGED = 4.0  # times the lowest smoothed loss
# The suggested learning rate is where the loss has fallen by this fraction of its total decrease. fastai and Lightning
# suggest the steepest gradient, which depends on the noise of single batches and is arbitrary where the loss falls
# slowly: see benchmarks/README.md.
FALLEN = 0.8
# Factors of the first loss and of its standard deviation over batches; a smaller decrease may be noise.
LEAST_FALL, NOISE = 0.01, 1.5
HEADER = ("rate", "loss", "smoothed_loss")
Values = NDArray[np.float64]
Batches = ImageDataModule | FeatureDataModule


@dataclass(frozen=True)
class RangeTest:
    """The result of a learning-rate range test.

    Attributes:
        lr: the learning rate to train with, rounded to two significant digits.
        rates: the learning rate of each step, float64, shape (steps,).
        losses: the loss of each step's batch before the step, float64, shape (steps,).
        smoothed: the exponential moving average of the losses, float64, shape (steps,).
        seconds: how long the test took.
    """

    lr: float
    rates: Values
    losses: Values
    smoothed: Values
    seconds: float

    def __str__(self) -> str:
        return f"{self.lr:g} (range test of {len(self.rates)} steps, {self.seconds:.0f} s)"

    def csv(self) -> str:
        """Return the curve as CSV text, one row per step, with the columns of `HEADER`."""
        return csv_text([HEADER, *zip(self.rates, self.losses, self.smoothed, strict=True)])


def lr_range_test(classifier: TransferClassifier, data: Batches, trainer: pl.Trainer, *, seed: int = 0) -> RangeTest:
    """Find a learning rate by training a copy of a classifier at increasing learning rates.

    The learning rate increases exponentially from `LOWEST` to `HIGHEST` in `STEPS` steps, over as many epochs as that
    takes. The test ends early if the loss diverges. The learning rate that increases is the optimizer's default
    (`optimizer.defaults["lr"]`), to which parameter groups keep their ratios.

    Afterwards the classifier and the random states of torch, numpy and Python are bit for bit what they were before.
    The batches come from a new DataLoader.

    Args:
        classifier: the classifier in any state; its optimizer's learning rate is not used.
        data: the training images, or their features for a classifier without its backbone.
        trainer: the Trainer that will train it.
        seed: seeds dropout and other random numbers; the same seed gives the same result on a CPU.

    Returns:
        The learning rate, and the curve that it was chosen by.

    Raises:
        ConfigError: the loss is not finite from the start, or does not fall at any learning rate.
    """
    start = time.perf_counter()
    rates, losses = np.geomspace(LOWEST, HIGHEST, STEPS), list[float]()
    shown = shows_progress(trainer)
    with preserve_random_states(), progress_bar("Finding the learning rate", STEPS, shown=shown) as advance:
        torch.manual_seed(mixed_seed("learning rates", seed))
        trial = TrialTrainer(classifier, trainer, lr=1.0)
        groups, default_lr = trial.optimizer.param_groups, trial.optimizer.defaults["lr"]
        ratios = [group["lr"] / default_lr for group in groups]
        for rate, batch in zip(rates, islice(endless_batches(data), STEPS), strict=True):
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] = float(rate * ratio)
            losses.append(trial.step(batch))
            means = smooth(losses)
            if not means[-1] <= DIVERGED * means.min():  # also true if it is NaN
                break
            advance(1)
    finite = np.isfinite(losses)
    rates, curve, means = rates[: len(losses)][finite], np.array(losses)[finite], means[finite]
    return RangeTest(suggest_lr(rates, curve, means), rates, curve, means, time.perf_counter() - start)


def endless_batches(data: Batches) -> Iterator[Batch]:
    """Yield training batches endlessly, epoch by epoch, from a new DataLoader, whose workers stop with it."""
    loader = data.train_dataloader()
    assert not isinstance(loader, FeatureBlocks)
    sampler = loader.sampler
    for epoch in count():
        assert isinstance(sampler, EpochSampler)
        sampler.set_epoch(epoch)
        yield from loader


def smooth(losses: list[float]) -> Values:
    """Compute the exponential moving average of the losses, with Adam's bias correction (Kingma & Ba).

    Returns:
        The average up to and including each loss, float64, shape (len(losses),).
    """
    means, mean = [], 0.0
    for steps, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**steps))
    return np.array(means)


def suggest_lr(rates: Values, losses: Values, smoothed: Values) -> float:
    """Return the learning rate at which the smoothed loss has fallen by `FALLEN` of its total decrease.

    Args:
        rates: the learning rate of each step, shape (steps,).
        losses: the finite losses, shape (steps,).
        smoothed: their exponential moving average, shape (steps,).

    Returns:
        The learning rate, rounded to two significant digits.

    Raises:
        ConfigError: see `lr_range_test`.
    """
    if len(losses) < FLAT:
        raise ConfigError(
            f"lr=auto: the loss is not finite even at a learning rate of {LOWEST:g}, so that no other one will do. "
            f"Check the weights for values that are not finite, or try trainer.precision=32-true."
        )
    lowest = int(smoothed.argmin())
    first, last = float(losses[:FLAT].mean()), float(smoothed[lowest])
    if first - last < max(LEAST_FALL * first, NOISE * float(losses[:FLAT].std())):
        raise ConfigError(
            f"lr=auto: the loss falls at no learning rate from {LOWEST:g} to {rates[-1]:.2g}: {first:.3g} at first, "
            f"and {last:.3g} is the lowest in {len(rates)} steps. Are the labels right (headstart look)? If they are, "
            f"the network learns too slowly for this test, or single batches are too noisy: set a number, such as "
            f"lr=1e-3, or a larger batch_size."
        )
    above = np.flatnonzero(smoothed[: lowest + 1] >= first - FALLEN * (first - last))
    index = int(above[-1]) if len(above) else 0
    return float(f"{rates[index]:.1e}")
