"""Images that look like none of the others: far from their neighbours in feature space.

What counts is the distance to one of the farther neighbours, of features scaled to length 1 (Sun et al.,
arXiv:2204.06507). Foreign images of one kind are near each other: the distance to the nearest would hide them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from headstart.cache.feature_loaders import FeatureTable
from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable
from headstart.utils.progress import Advance
from headstart.utils.statistics import robust_deviation

# Robust standard deviations. Above it are 80 to 100 % of three foreign images among those of three real sets, 64 to
# 100 % of twenty of a kind, and 0.6 to 1.0 % of the sets' own (benchmarks/check_limits.py).
LIMIT = 3.0
NEIGHBOUR = 20  # the neighbour whose distance counts
REFERENCES = 10_000  # images, drawn at random, among which neighbours are looked for: time is linear in the images then
FEWEST = 50  # images, for a median and a deviation that mean something
BLOCK = 1024  # images that are compared with the references at once: 41 MB


def neighbour_distances(
    features: FeatureTable, images: NDArray[np.int64], labels: NDArray[np.int64], advance: Advance
) -> NDArray[np.float64]:
    """Return how far each image is from its neighbour number `NEIGHBOUR`: 1 minus the cosine similarity.

    In a small class, it is a nearer neighbour: half of the class is nearer still, so that the class is no outlier.

    Args:
        features: the features of all images.
        images: indices of different pictures: copies would be near each other; two at least.
        labels: the class of each of these, shape (len(images),).
        advance: called with the number of images after each block of them.
    """
    drawn = np.random.default_rng(0).permutation(len(images))[:REFERENCES]
    references = torch.from_numpy(images[drawn])
    vectors = torch.cat([_directions(features, part) for part in torch.split(references, BLOCK)])
    sizes = np.bincount(labels[drawn], minlength=int(labels.max()) + 1)
    ranks = torch.from_numpy(np.clip(sizes // 2, 1, min(NEIGHBOUR, len(drawn) - 1))[labels] - 1)
    parts = list[Tensor]()
    for block, rank in zip(torch.split(torch.from_numpy(images), BLOCK), torch.split(ranks, BLOCK), strict=True):
        similarities = _directions(features, block) @ vectors.T
        similarities[block[:, None] == references] = -torch.inf  # itself
        nearest = similarities.topk(int(rank.max()) + 1, dim=1).values
        parts.append(1 - nearest.gather(1, rank[:, None])[:, 0])
        advance(len(block))
    return torch.cat(parts).double().numpy()


def outlier_scores(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how large each distance is, in robust standard deviations above the median.

    Their logarithms are compared, because distances are skewed.
    """
    logs = np.log(np.maximum(distances, 1e-6))
    scale = robust_deviation(logs)
    scores: NDArray[np.float64] = (logs - np.median(logs)) / scale if scale > 0 else np.zeros(len(logs))
    return scores


def outlier_findings(
    table: ImageTable, features: FeatureTable, images: NDArray[np.int64], advance: Advance
) -> list[Finding]:
    """Return the few images that are clearly farther from their neighbours than others; see `neighbour_distances`."""
    if len(images) < FEWEST:
        return []
    scores = outlier_scores(neighbour_distances(features, images, table.samples.labels[images], advance))
    return [
        Finding(
            "outlier",
            table.samples.names[images[row]],
            score=float(scores[row]),
            detail=f"{table.describe(images[row])}; {scores[row]:.1f} deviations farther from its neighbours than most",
        )
        for row in np.flatnonzero(scores > LIMIT).tolist()
    ]


def _directions(features: FeatureTable, numbers: Tensor) -> Tensor:
    """Return the features of images, scaled to length 1, float32, shape (images, width)."""
    return F.normalize(features.rows_at(numbers)[0].float(), dim=1).cpu()
