"""Leave-one-out answers in closed form: those of scikit-learn's Ridge, fitted again without each image or group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from headstart.training.tuning.leave_one_out import PENALTIES, leave_one_out


def images(count: int, width: int, classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return noisy features around a centre for each class, one of them constant, and labels."""
    rng = np.random.default_rng(count + width)
    labels = np.arange(count) % classes
    features = rng.normal(size=(classes, width))[labels] + 2 * rng.normal(size=(count, width))
    features[:, 0] = 5
    return (features * rng.uniform(0.1, 10, width)).astype(np.float32), labels


def refitted(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: Sequence[str]
) -> dict[float, NDArray[np.float64]]:
    """Return, for each penalty, the scores of each image by a ridge regression without its group."""
    rows = features.astype(np.float64)
    rows = (rows - rows.mean(axis=0)) / np.where(np.ptp(features, axis=0) > 0, rows.std(axis=0), 1)
    values = np.linalg.eigvalsh(rows.T @ rows)
    scale = values[values > 1e-9 * values.max()].mean()
    targets, of_images = np.eye(labels.max() + 1)[labels], np.array(groups)
    scores = {}
    for penalty in PENALTIES:
        scores[penalty] = np.empty_like(targets)
        for group in set(groups):
            own = of_images == group
            ridge = Ridge(alpha=penalty * scale, solver="svd").fit(rows[~own], targets[~own])
            scores[penalty][own] = ridge.predict(rows[own])
    return scores


def check_against_refitted(features: NDArray[np.float32], labels: NDArray[np.int64], groups: Sequence[str]) -> None:
    """Compare with the regressions of the penalty with the least error, for classes as frequent as among all images."""
    expected, targets, of_images = refitted(features, labels, groups), np.eye(3)[labels], np.array(groups)
    best = min(expected.values(), key=lambda of_penalty: float(np.square(of_penalty - targets).mean()))
    for group in set(groups):
        own = of_images == group
        best[own] += targets.mean(axis=0) - targets[~own].mean(axis=0)
    given = None if len(set(groups)) == len(groups) else groups
    np.testing.assert_allclose(leave_one_out(features, labels, given), best, atol=1e-7)


@pytest.mark.parametrize("width", [8, 90], ids=["tall", "wide"])
@pytest.mark.parametrize("size", [1, 2, 4], ids=["each image", "pairs", "groups of four"])
def test_the_answers_are_those_of_regressions_that_are_fitted_again(width: int, size: int) -> None:
    features, labels = images(42, width)
    check_against_refitted(features, labels, [str(index // size) for index in range(len(labels))])


def test_groups_of_one_image_are_no_groups() -> None:
    features, labels = images(30, 12)
    alone = leave_one_out(features, labels, [str(index) for index in range(30)])
    np.testing.assert_array_equal(alone, leave_one_out(features, labels, None))


def test_groups_of_different_sizes_in_any_order() -> None:
    features, labels = images(31, 12)
    check_against_refitted(features, labels, [str(number) for number in np.random.default_rng(0).integers(0, 9, 31)])


def test_noise_is_answered_as_well_as_by_guessing() -> None:
    labels = np.arange(32) % 2
    right = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=(32, 20)).astype(np.float32)
        right.append((leave_one_out(noise, labels, None).argmax(axis=1) == labels).mean())
    assert 0.47 < np.mean(right) < 0.53


def test_copies_do_not_answer_for_each_other_in_a_group() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 200)), 2, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    pairs = [str(index // 2) for index in range(120)]
    assert (leave_one_out(features, labels, None).argmax(axis=1) == labels).mean() > 0.9
    assert (leave_one_out(features, labels, pairs).argmax(axis=1) == labels).mean() < 0.7


def test_features_that_are_all_constant_answer_the_larger_class() -> None:
    labels = np.array([0] * 12 + [1] * 6)
    scores = leave_one_out(np.ones((18, 4), dtype=np.float32), labels, None)
    assert (scores.argmax(axis=1) == 0).all()
