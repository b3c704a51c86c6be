"""Images that look like none of the others: far from their neighbours in feature space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headstart.checks.findings import Finding
from headstart.checks.neighbours import Neighbours
from headstart.checks.table import ImageTable
from headstart.utils.statistics import robust_deviation

LIMIT = 6.0  # robust standard deviations
FEWEST = 50  # images, for a median and a deviation that mean something


def outlier_scores(neighbours: Neighbours) -> NDArray[np.float64]:
    """Return how far each image is from its neighbours, in robust standard deviations above the median.

    The distance is 1 minus the mean cosine similarity to the neighbours, and its logarithm is compared: distances are
    skewed. Images without neighbours have 0.
    """
    distances = 1.0 - neighbours.similarities.mean(axis=1, dtype=np.float64)
    logs = np.log(np.maximum(distances, 1e-6))
    deviations = logs - np.median(logs)
    scale = robust_deviation(logs)
    scores: NDArray[np.float64] = deviations / scale if scale > 0 else np.zeros(len(deviations))
    return scores


def outlier_findings(table: ImageTable, images: NDArray[np.int64], neighbours: Neighbours) -> list[Finding]:
    """Return the few images that are clearly farther from their neighbours than others.

    Args:
        table: the images.
        images: indices of different pictures: copies would be near each other.
        neighbours: the nearest neighbours of these.
    """
    if len(images) < FEWEST:
        return []
    scores = outlier_scores(neighbours)
    return [
        Finding(
            "outlier",
            table.samples.names[images[row]],
            score=float(scores[row]),
            detail=f"{table.describe(images[row])}; {scores[row]:.1f} deviations farther from its neighbours than most",
        )
        for row in np.flatnonzero(scores > LIMIT).tolist()
    ]
