"""The backbone to take: the cheapest of those that are as good as the best, for all that the sample says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headstart.advice.prior import with_prior
from headstart.advice.result import Candidate, Measured

WORTH = 0.01  # accuracy for which speed is given up: a point
NEARLY = 1.25  # rates within a quarter are equal: the smaller file decides
RESTRICTED = ("-nc", "non-commercial", "noncommercial", "swag")  # in licences that forbid commercial use


def recommend(measured: Sequence[Measured], *, prior: bool) -> tuple[Measured, str]:
    """Return the cheapest of the backbones that cannot be told from the best, and why, in a sentence.

    Of those, only the ones count whose accuracy is within a point of the highest: with few images, nearly all backbones
    cannot be told apart, and the cheapest is rarely the best of them. For the same reason, accuracies are combined with
    how the backbones stand on ImageNet; see `with_prior`. Random weights count only if there is nothing else, and so do
    weights whose licence forbids commercial use.

    Args:
        measured: all backbones that were measured.
        prior: whether to use how they stand on ImageNet.
    """
    scores = {one.candidate.name: one.accuracy.value for one in measured}
    if prior:
        published = [np.nan if one.candidate.published is None else one.candidate.published for one in measured]
        images = min(one.images for one in measured if one.may_be_best)
        scores = dict(
            zip(scores, with_prior(np.array(list(scores.values())), np.array(published), images), strict=True)
        )
    level = [one for one in measured if one.may_be_best]
    level = [one for one in level if not is_random(one.candidate)] or level
    level = [one for one in level if not is_restricted(one.candidate)] or level
    highest = max(scores[one.candidate.name] for one in level)
    near = [one for one in level if scores[one.candidate.name] >= highest - WORTH]
    fastest = max(one.rate for one in near)
    chosen = min((one for one in near if one.rate * NEARLY >= fastest), key=lambda one: one.candidate.megabytes or 0)
    if len(near) == 1:
        others = (
            "the others are less accurate" if len(level) == 1 else f"of {len(level)} that cannot be told from the best"
        )
        return chosen, f"{chosen.candidate.label} is the most accurate; {others}"
    return chosen, f"{chosen.candidate.label} is the cheapest of {len(near)} that are as accurate as the best"


def is_random(candidate: Candidate) -> bool:
    """Tell whether a backbone has random weights."""
    return candidate.model is not None and candidate.model.weights is None


def is_restricted(candidate: Candidate) -> bool:
    """Tell whether the licence of the weights forbids commercial use."""
    return any(word in (candidate.licence or "").lower() for word in RESTRICTED)
