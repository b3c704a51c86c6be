"""Which backbones cannot be told from the best, and intervals of their accuracies."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.advice.best import compare


def answers(accuracies: list[float], images: int, seed: int, shared: float = 0.5) -> NDArray[np.bool_]:
    """Return whether backbones answer images rightly; a part of what makes an image hard is the same for all."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(len(accuracies), images))
    hard = shared**0.5 * rng.normal(size=images) + (1 - shared) ** 0.5 * own
    limits = np.quantile(rng.normal(size=100_000), accuracies)
    return hard < limits[:, None]


def test_equal_answers_are_a_tie() -> None:
    one = answers([0.8], 50, seed=0)
    found = compare(np.vstack([one, one]), None)
    assert found.may_be_best.all()
    assert found.accuracy[0] == found.accuracy[1] == one.mean()


def test_equal_backbones_are_a_tie() -> None:
    ties = [compare(answers([0.8, 0.8], 64, seed), None).may_be_best.all() for seed in range(100)]
    assert np.mean(ties) >= 0.9


def test_a_backbone_that_is_clearly_better_is_told() -> None:
    found = compare(answers([0.6, 0.95, 0.7], 200, seed=0), None)
    assert found.best == 1
    assert found.may_be_best.tolist() == [False, True, False]


def test_the_best_itself_may_be_the_best_even_without_a_mistake() -> None:
    right = np.ones((2, 40), dtype=np.bool_)
    right[1, :10] = False
    found = compare(right, None)
    assert found.may_be_best.tolist() == [True, False]


def test_the_luckiest_of_twenty_equal_backbones_is_told_from_none() -> None:
    """This holds the level that is promised, 95 %, and not only for pairs."""
    told = [not compare(answers([0.85] * 20, 160, seed), None).may_be_best.all() for seed in range(200)]
    assert np.mean(told) <= 0.05


def test_images_of_a_group_are_no_evidence_of_their_own() -> None:
    few = answers([0.7, 0.8], 30, seed=0)
    many = np.repeat(few, 20, axis=1)
    groups = [str(index // 20) for index in range(many.shape[1])]
    assert compare(many, None).may_be_best.sum() == 1
    grouped, alone = compare(many, groups), compare(few, None)
    assert grouped.may_be_best.tolist() == alone.may_be_best.tolist() == [True, True]
    np.testing.assert_allclose(grouped.low, alone.low, atol=0.02)
    np.testing.assert_allclose(grouped.high, alone.high, atol=0.02)


@pytest.mark.parametrize("right", [0, 40])
def test_an_interval_of_equal_answers_is_not_a_point(right: int) -> None:
    """All of 40 images right is no proof of an accuracy of 1."""
    found = compare((np.arange(40) < right)[None], None)
    low, high = float(found.low[0]), float(found.high[0])
    assert 0 <= low <= found.accuracy[0] <= high <= 1
    assert 0.05 < high - low < 0.2
