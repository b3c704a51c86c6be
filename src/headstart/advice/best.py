"""Backbones that cannot be told from the best one, by the same images answered by all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000  # bootstrap samples: the 95th percentile is then within a tenth of a standard error
CONFIDENCE = 0.95
# Variance of the accuracy of heads that are fitted to the images themselves, relative to that of one head: measured 0.9
# to 1.5, more with fewer images (benchmarks/README.md).
FITTING = 1.2


@dataclass(frozen=True)
class Comparison:
    """Accuracies of backbones on the same images, and how far each is from the best.

    Attributes:
        accuracy: of each backbone, shape (backbones,).
        low: lower limit of its 95 % interval.
        high: its upper limit.
        best: index of the backbone with the highest accuracy.
        may_be_best: whether a backbone cannot be told from the best, bool, shape (backbones,).
    """

    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    best: int
    may_be_best: NDArray[np.bool_]


def compare(correct: NDArray[np.bool_], groups: Sequence[str] | None, seed: int = 0) -> Comparison:
    """Compare backbones by which images their heads answer correctly.

    Images are drawn with replacement (whole groups, if there are any), the same for all backbones, so that what makes
    an image hard for all of them cancels. A backbone is told from the best if their difference, in units of its
    standard error, exceeds what the largest of the differences of all pairs reaches by chance in 95 % of the draws. So
    the luckiest of many equal backbones is not taken for better (maxT; Westfall & Young, "Resampling-Based Multiple
    Testing", 1993; all pairs, as by Tukey, because it is not known before which one is the best).

    Args:
        correct: shape (backbones, images).
        groups: group of each image, or None.
        seed: of the draws.
    """
    accuracy = correct.mean(axis=1)
    best = int(accuracy.argmax())
    drawn = draw_accuracies(correct, groups, np.random.default_rng(seed))
    low, high = accuracy_interval(correct, groups)
    errors = drawn - accuracy
    differences = errors[:, :, None] - errors[:, None, :]  # of each pair, shape (DRAWS, backbones, backbones)
    scale = differences.std(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: the same answers to all images
        largest = np.nan_to_num(differences / scale).max(axis=(1, 2))
    gaps = accuracy[best] - accuracy
    may_be_best = gaps <= np.quantile(largest, CONFIDENCE) * scale[best]
    return Comparison(accuracy, low, high, best, may_be_best)


def accuracy_interval(
    correct: NDArray[np.bool_], groups: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the limits of the 95 % intervals of accuracies, each of shape (backbones,).

    They are Wilson's (JASA, 1927) for the effective number of images: as many as would make an accuracy as uncertain if
    images did not come in groups (Korn & Graubard, Survey Methodology, 1998), divided by `FITTING`. A percentile
    bootstrap is too narrow with few images, and has no width if all answers are right.

    Args:
        correct: whether backbones answer images rightly, by heads that were not fitted to them; (backbones, images).
        groups: group of each image, or None.
    """
    accuracy, images = correct.mean(axis=1), correct.shape[1]
    sizes, hits = _by_group(correct, groups)
    deviations = np.square(hits - accuracy[:, None] * sizes).sum(axis=1) * len(sizes) / max(1, len(sizes) - 1)
    alike = images**2 / np.square(sizes).sum()  # if all images of a group were answered alike
    effective = np.full(len(accuracy), alike)
    np.divide(accuracy * (1 - accuracy) * images**2, deviations, out=effective, where=deviations > 0)
    effective = effective.clip(alike, images) / FITTING
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    middle = (accuracy + z2 / (2 * effective)) / (1 + z2 / effective)
    half = np.sqrt(z2 * (accuracy * (1 - accuracy) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return np.minimum(middle - half, accuracy).clip(0, 1), np.maximum(middle + half, accuracy).clip(0, 1)


def draw_accuracies(
    correct: NDArray[np.bool_], groups: Sequence[str] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return accuracies on images drawn with replacement, groups as a whole; shape (DRAWS, backbones)."""
    sizes, hits = _by_group(correct, groups)
    weights = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    accuracies: NDArray[np.float64] = (weights @ hits.T) / (weights @ sizes)[:, None]
    return accuracies


def _by_group(
    correct: NDArray[np.bool_], groups: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the size of each group, shape (groups,), and its correct answers, shape (backbones, groups)."""
    codes = np.arange(correct.shape[1]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    hits = np.stack([np.bincount(codes, of_backbone) for of_backbone in correct])
    return np.bincount(codes).astype(np.float64), hits.astype(np.float64)
