"""Learning curves: what was measured, and twice as far at most."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.advice.curve import learning_curve

SIZES = (100, 200, 400)


def answers(seed: int) -> list[NDArray[np.bool_]]:
    """Answers of heads whose accuracy is 0.95 - 1 / the root of the images that they are fitted to."""
    hard = np.random.default_rng(seed).random(SIZES[-1])
    return [hard[:size] < 0.95 - size**-0.5 for size in SIZES]


@pytest.mark.parametrize(("images", "last"), [(400, 400), (600, 600), (50_000, 800)])
def test_it_ends_at_all_images_or_at_twice_the_sample(images: int, last: int) -> None:
    curve = learning_curve(answers(0), None, images)
    assert [size for size, _ in curve] == sorted({*SIZES, last})
    for _, estimate in curve:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_the_interval_holds_the_accuracy_with_more_images() -> None:
    held = 0
    for seed in range(100):
        _, further = learning_curve(answers(seed), None, 800, seed)[-1]
        held += further.low <= 0.95 - 800**-0.5 <= further.high
    assert held >= 92


def test_more_images_are_not_expected_to_do_harm() -> None:
    worse = [np.arange(size) % 100 >= harm for size, harm in zip(SIZES, (5, 10, 15), strict=True)]
    (*_, (_, last), (_, further)) = learning_curve(worse, None, 800)
    assert further.value >= last.value


def test_groups_make_intervals_wider() -> None:
    right = [np.repeat(np.random.default_rng(0).random(size // 20) < 0.8, 20) for size in SIZES]
    groups = [f"scene {index // 20}" for index in range(SIZES[-1])]
    (_, alone), (_, together) = (learning_curve(right, given, 800)[-1] for given in (None, groups))
    assert together.high - together.low > 2 * (alone.high - alone.low)
