"""What is known of backbones from other images, which counts while a sample is too small to tell them apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of the variance p (1 - p) / n of an accuracy p on n images, the part by which backbones differ: the rest is that of
# images that are easy or hard for all of them. Real photographs: 0.5 to 0.9 (benchmarks/README.md).
OWN_NOISE = 0.5


def with_prior(accuracy: NDArray[np.float64], standing: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """Return the scores to choose a backbone by: accuracies on a sample, drawn towards what is known from elsewhere.

    The standing says how far a backbone is from the mean of the others. Accuracies are drawn towards it by the part of
    their scatter about it that chance explains (empirical Bayes: Fay & Herriot, "Estimates of income for small places",
    JASA, 1979). So the prior counts while there are few images, and if backbones stand here as they stand elsewhere;
    it hardly counts for images on which they are spread otherwise.

    Args:
        accuracy: of each backbone, a fraction, shape (backbones,). Those that a larger sample left behind belong here
            with what is known of them: they say how well the prior fits.
        standing: of each elsewhere, such as its published accuracy on ImageNet, a fraction; NaN if it is unknown. Only
            differences count.
        images: number of images of the sample.

    Returns:
        Shape (backbones,). Where the standing is unknown, or fewer than two are known, the accuracy itself.
    """
    known = ~np.isnan(standing)
    score = accuracy.copy()
    if known.sum() < 2:
        return score
    here, elsewhere = accuracy[known], standing[known]
    towards = here.mean() + elsewhere - elsewhere.mean() - here
    scatter = float(np.square(towards).sum()) / (len(here) - 1)
    noise = OWN_NOISE * float((here * (1 - here)).mean()) / images
    if scatter > 0:
        score[known] += min(1.0, noise / scatter) * towards
    return score
