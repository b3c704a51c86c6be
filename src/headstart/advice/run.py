"""Comparison of backbones on a growing sample of the training images, and the one to take."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headstart.advice.best import Comparison, compare
from headstart.advice.choice import recommend
from headstart.advice.curve import learning_curve
from headstart.advice.probe import Probe, open_probe
from headstart.advice.result import Advice, Candidate, Estimate, Measured
from headstart.advice.sample import beginning, first_size, sample_order
from headstart.config.schema import Config
from headstart.data.build import open_images
from headstart.data.dataset import Samples
from headstart.training.fitted_head.path import number_of_folds
from headstart.training.tuning.choose_strategy import FROZEN, decide, scaled_accuracy
from headstart.utils.errors import HeadstartError, ModelError

PARTS = (4, 2)  # the learning curve begins with these parts of the sample


@dataclass
class Race:
    """The images, the clock, and what was not measured.

    Attributes:
        train: the training images.
        order: every beginning of it is a sample; see `sample_order`.
        until: time when the comparison is to end, in seconds of `time.monotonic`.
        limit: the limit as the user gave it, for messages.
        others: candidates that were not measured, with their problems.
        notes: what was left out.
    """

    train: Samples
    order: NDArray[np.int64]
    until: float
    limit: str
    others: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.monotonic()

    def sample(self, size: int) -> Samples:
        """Return the first images of the order, about `size` of them."""
        return self.train.take(beginning(self.order, self.train.groups, size))


def advise(
    config: Config, candidates: Sequence[Candidate], *, overrides: Sequence[str] = (), shown: bool = True
) -> Advice:
    """Compare backbones on a sample of the training images, which doubles for those that may be the best.

    First, every backbone answers a small sample by ridge regression, with each image left out. Those that are told from
    the best drop out, and the sample doubles for the others (successive halving: Jamieson & Talwalkar,
    arXiv:1502.07943), until one is left, or all images are in it, or the time is spent. Heads that are fitted and
    cross-validated decide among the rest. All features stay in the cache for the run that follows.

    Args:
        config: the checked configuration: data, features, trainer and advise count.
        candidates: the backbones; those with a problem are passed on as they are.
        overrides: the overrides of the command line, for the command that trains next.
        shown: whether to show progress bars.

    Raises:
        HeadstartError: the images cannot be listed or read, or no backbone could be measured.
    """
    end = time.monotonic() + 60 * config.advise.minutes
    config = replace(config, trainer=replace(config.trainer, enable_progress_bar=shown))
    images = open_images(config.data)
    train = images.splits["train"]
    race = Race(
        train,
        sample_order(train.labels, train.groups, config.data.split_seed),
        end,
        f"advise.minutes={config.advise.minutes:g}",
        [candidate for candidate in candidates if candidate.problem],
    )
    classes = len(images.class_names)
    size = first_size(len(train), classes)
    probes = _open(config, [candidate for candidate in candidates if not candidate.problem], race, size)
    if not probes:
        reasons = "; ".join(f"{other.name}: {other.problem}" for other in race.others)
        raise ModelError(f"no backbone could be measured ({reasons}). Name others by advise.models=A,B.")
    measured = _compare(probes, race, size)
    recommended, reason = recommend(measured, prior=config.advise.prior != "off")
    measured.sort(key=lambda one: (not one.may_be_best, -one.accuracy.value))
    strategy = decide(len(train) / classes, scaled_accuracy(recommended.accuracy.value, train.labels))
    tuned = [] if strategy.strategy == FROZEN else [f"finetune={strategy.strategy}"]
    kept = [override for override in overrides if not override.startswith(("advise.", "model=", "model."))]
    command = shlex.join(["python", "train.py", *kept, *recommended.candidate.overrides, *tuned])
    return Advice(measured, race.others, recommended, reason, len(train), classes, str(strategy), command, race.notes)


def _open(config: Config, candidates: Sequence[Candidate], race: Race, size: int) -> list[Probe]:
    """Build the backbones, the smallest first, and read the features of the first sample while there is time."""
    probes = []
    sample = race.sample(size)
    for candidate in sorted(candidates, key=lambda one: one.megabytes or np.inf):
        try:
            if race.left < 0:
                raise ModelError(f"not reached within {race.limit}")
            probe = open_probe(config, candidate)
            needed = probe.seconds * len(sample)
            if needed > race.left:
                raise ModelError(
                    f"{len(sample):,} images would take it {needed:.0f} s, more than is left of {race.limit}"
                )
            probe.read(sample)
            probes.append(probe)
        except HeadstartError as error:
            race.others.append(replace(candidate, problem=str(error)))
    return probes


def _compare(probes: Sequence[Probe], race: Race, size: int) -> list[Measured]:
    """Compare backbones on samples that double, and return what is known of each in the end."""
    dropped: list[Measured] = []
    remaining = list(probes)
    while True:
        sample = race.sample(size)
        right = np.stack([probe.answers(sample.labels, sample.groups, fitted=False) for probe in remaining])
        found = compare(right, sample.groups)
        for index in np.flatnonzero(~found.may_be_best):
            dropped.append(_measured(remaining[index], found, int(index), len(sample), may_be_best=False))
        remaining = [probe for probe, stays in zip(remaining, found.may_be_best, strict=True) if stays]
        if len(remaining) == 1 or len(sample) == len(race.train):
            break
        larger = race.sample(2 * size)
        needed = sum(probe.seconds for probe in remaining) * (len(larger) - len(sample))
        if needed > race.left:
            race.notes.append(
                f"{len(remaining)} backbones could not be told apart with {len(sample):,} images: {len(larger):,} "
                f"would take {needed:.0f} s more, and {max(0.0, race.left):.0f} s are left of {race.limit}"
            )
            break
        size *= 2
        for probe in remaining:
            probe.read(larger)
    return [*_decide(remaining, race, size), *dropped]


def _decide(probes: Sequence[Probe], race: Race, size: int) -> list[Measured]:
    """Compare the remaining backbones by fitted heads, if there is time, and draw their learning curves."""
    sample = race.sample(size)
    beginnings = [part for part in (race.sample(size // part) for part in PARTS) if _learnable(part)] + [sample]
    fitted, by_probe = number_of_folds(sample.labels, sample.groups) > 1, list[list[NDArray[np.bool_]]]()
    start = time.monotonic()
    for number, probe in enumerate(probes):
        if fitted and (time.monotonic() - start) / max(1, number) > max(0.0, race.left):
            race.notes.append(f"heads were not fitted within {race.limit}: ridge regression answers alone")
            fitted, by_probe = False, [_curve_answers(earlier, beginnings, fitted=False) for earlier in probes[:number]]
        by_probe.append(_curve_answers(probe, beginnings, fitted=fitted))
    found = compare(np.stack([answers[-1] for answers in by_probe]), sample.groups)
    measured = []
    for index, (probe, answers) in enumerate(zip(probes, by_probe, strict=True)):
        curve = learning_curve(answers, sample.groups, len(race.train))
        one = _measured(probe, found, index, len(sample), may_be_best=bool(found.may_be_best[index]))
        measured.append(replace(one, fitted=fitted, curve=curve))
    return measured


def _learnable(sample: Samples) -> bool:
    """Tell whether each class has two images, one to fit to and one to answer, and whether groups leave two folds."""
    return int(np.bincount(sample.labels).min()) > 1 and number_of_folds(sample.labels, sample.groups) > 1


def _curve_answers(probe: Probe, beginnings: Sequence[Samples], *, fitted: bool) -> list[NDArray[np.bool_]]:
    return [probe.answers(part.labels, part.groups, fitted=fitted) for part in beginnings]


def _measured(probe: Probe, found: Comparison, index: int, images: int, *, may_be_best: bool) -> Measured:
    accuracy = Estimate(*(float(values[index]) for values in (found.accuracy, found.low, found.high)))
    return Measured(probe.candidate, images, accuracy, fitted=False, curve=[], may_be_best=may_be_best)
