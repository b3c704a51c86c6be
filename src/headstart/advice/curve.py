"""Learning curves: accuracy by the number of images that a head is fitted to, and a little further."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.advice.best import CONFIDENCE, accuracy_interval, draw_accuracies
from headstart.advice.result import Estimate

FURTHEST = 2  # times the sample: beyond, three points say nothing


def learning_curve(
    answers: Sequence[NDArray[np.bool_]],
    groups: Sequence[str] | None,
    images: int,
    seed: int = 0,
) -> list[tuple[int, Estimate]]:
    """Return the accuracy with a quarter, a half and all of a sample, and with more images.

    The curve a - b / √images with b ≥ 0 goes through the measured points by least squares, weighted by their numbers of
    images: the error that comes from the head's noise falls with the root of the images or faster. Its interval is that
    of bootstrap draws, of the same images for all points, and at least as wide as that of the last point.

    Args:
        answers: whether the head's answers are right, for the images of each beginning of the sample, smallest first.
        groups: group of each image of the whole sample, or None.
        images: number of all training images.
        seed: of the draws.

    Returns:
        Numbers of images and accuracies, smallest first: the last is for all images, or for twice the sample if that is
        less.
    """
    sizes = np.array([len(right) for right in answers])
    target = min(images, FURTHEST * int(sizes[-1]))
    drawn = np.stack(
        [
            draw_accuracies(right[None], None if groups is None else groups[: len(right)], np.random.default_rng(seed))
            for right in answers
        ],
        axis=1,
    )[:, :, 0]
    means = np.array([right.mean() for right in answers])
    points = []
    for size, right, mean in zip(sizes.tolist(), answers, means.tolist(), strict=True):
        low, high = accuracy_interval(right[None], None if groups is None else groups[:size])
        points.append((size, Estimate(mean, float(low[0]), float(high[0]))))
    if target > sizes[-1]:
        further = _extrapolate(sizes, np.vstack([means, drawn]), target)
        value, last = float(further[0]), points[-1][1]
        least, most = np.quantile(further[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        least, most = min(least, value - last.value + last.low), max(most, value - last.value + last.high)
        points.append((target, Estimate(value, max(0.0, least), min(1.0, most))))
    return points


def _extrapolate(sizes: NDArray[np.int64], accuracies: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Return the accuracy at `target` images of each curve; accuracies have the shape (curves, sizes)."""
    if len(sizes) < 2:
        return accuracies[:, -1]
    x, weights = 1 / np.sqrt(sizes), sizes / sizes.sum()
    middle = weights @ x
    slopes = (accuracies * weights) @ (x - middle) / (weights @ (x - middle) ** 2)
    slopes = np.minimum(slopes, 0)
    predicted: NDArray[np.float64] = np.clip(accuracies @ weights + slopes * (target**-0.5 - middle), 0, 1)
    return predicted
