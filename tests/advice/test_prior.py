"""The prior: how backbones stand elsewhere counts while a sample is tiny."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.advice.prior import OWN_NOISE, with_prior

STANDING = np.array([0.60, 0.70, 0.80])


def test_standing_decides_what_few_images_leave_open() -> None:
    accuracy = np.array([0.90, 0.86, 0.89])
    assert with_prior(accuracy, STANDING, 16).argmax() == 2
    assert with_prior(accuracy, STANDING, 100_000).argmax() == 0


def test_the_prior_counts_less_the_more_images_there_are() -> None:
    accuracy = np.array([0.90, 0.86, 0.92])
    moved = [np.abs(with_prior(accuracy, STANDING, images) - accuracy).max() for images in (8, 80, 800, 8000)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.002


def test_scores_are_drawn_by_the_part_of_the_scatter_that_chance_explains() -> None:
    accuracy, standing = np.array([0.8, 0.6]), np.array([0.5, 0.6])
    expected = np.array([0.65, 0.75])  # the mean accuracy here, and the difference elsewhere
    scatter = 2 * 0.15**2
    weight = OWN_NOISE * (0.16 + 0.24) / 2 / 100 / scatter
    np.testing.assert_allclose(with_prior(accuracy, standing, 100), accuracy + weight * (expected - accuracy))


def test_a_prior_that_does_not_fit_has_nearly_no_weight() -> None:
    """Backbones that differ by chance elsewhere and by 40 points here are on images of another kind."""
    accuracy = np.array([0.95, 0.75, 0.55])
    np.testing.assert_allclose(with_prior(accuracy, STANDING, 64), accuracy, atol=0.02)


def test_only_differences_of_standing_count() -> None:
    accuracy = np.array([0.90, 0.86, 0.92])
    np.testing.assert_allclose(with_prior(accuracy, STANDING, 32), with_prior(accuracy, STANDING - 0.3, 32))


def test_a_backbone_without_standing_keeps_its_accuracy() -> None:
    accuracy = np.array([0.90, 0.99, 0.86, 0.88])
    standing = np.insert(STANDING, 1, np.nan)
    score = with_prior(accuracy, standing, 32)
    assert score[1] == accuracy[1]
    np.testing.assert_array_equal(np.delete(score, 1), with_prior(np.delete(accuracy, 1), STANDING, 32))


@pytest.mark.parametrize("standing", [[np.nan, np.nan, np.nan], [0.7, np.nan, np.nan]])
def test_one_standing_says_nothing(standing: list[float]) -> None:
    accuracy = np.array([0.90, 0.86, 0.92])
    np.testing.assert_array_equal(with_prior(accuracy, np.array(standing), 16), accuracy)


def test_accuracies_that_stand_as_elsewhere_stay() -> None:
    np.testing.assert_allclose(with_prior(STANDING + 0.1, STANDING, 16), STANDING + 0.1)


def test_the_argument_is_not_changed() -> None:
    accuracy = np.array([0.90, 0.86, 0.92])
    with_prior(accuracy, STANDING, 16)
    assert accuracy.tolist() == [0.90, 0.86, 0.92]
