"""Intervals, calibration and the paired test, against published numbers and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from headstart.report.statistics import calibration_error, compare, mean_interval, wilson
from headstart.training.calibration import fit_temperature


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        # Newcombe (1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(correct: int, images: int, low: float, high: float) -> None:
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_hold_what_they_promise() -> None:
    """Of 95 % intervals about as many contain the truth, at sizes and accuracies as people have them."""
    rng = np.random.default_rng(0)
    for truth, images in ((0.95, 165), (0.8, 40), (0.99, 700)):
        intervals = [wilson(int(correct), images) for correct in rng.binomial(images, truth, 2000)]
        covered = np.mean([low <= truth <= high for low, high in intervals])
        assert 0.93 <= covered <= 0.98, (truth, images, covered)


def test_mean_interval() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.exponential(1, 200).astype(np.float32)) for _ in range(1000)]
    assert 0.92 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.97
    assert mean_interval(np.array([0.5], dtype=np.float32)) == (0.5, 0.5)


def calibrated_logits(temperature: float, images: int = 4000, classes: int = 5) -> tuple[torch.Tensor, np.ndarray]:
    """Logits that are calibrated after division by a temperature, with labels drawn from their probabilities."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(images, classes, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits * temperature, labels.numpy()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_the_logits_is_recovered(temperature: float) -> None:
    logits, labels = calibrated_logits(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.08)
    assert calibration_error(logits / fitted, labels) < 0.03
    if temperature != 1:
        assert calibration_error(logits, labels) > 3 * calibration_error(logits / fitted, labels)
    # No other one fits better.
    targets = torch.from_numpy(labels)
    best = F.cross_entropy(logits / fitted, targets)
    assert all(F.cross_entropy(logits / (fitted * factor), targets) > best for factor in (0.9, 1.1))


def test_without_a_mistake_no_temperature_is_fitted() -> None:
    """The likelihood would be largest at a temperature of 0: sure of everything, with ten images for proof."""
    logits = torch.eye(3).repeat(4, 1)
    labels = logits.argmax(dim=1).numpy()
    assert fit_temperature(logits, labels) == 1.0
    assert fit_temperature(torch.full((3, 2), torch.nan), np.array([0, 1, 0])) == 1.0


def test_a_temperature_beyond_reason_is_not_taken() -> None:
    """One confident mistake among three images would make every answer as probable as the others."""
    assert fit_temperature(torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 5.0]]), np.array([1, 1, 1])) == 1.0


def test_calibration_error_by_hand() -> None:
    """Ten images at a confidence of 0.8, of which six are right, and ten at 0.6, of which all are."""
    logits = torch.log(torch.tensor([[0.8, 0.2]] * 10 + [[0.6, 0.4]] * 10))
    labels = np.array([0] * 6 + [1] * 4 + [0] * 10)
    assert calibration_error(logits, labels) == pytest.approx((10 * 0.2 + 10 * 0.4) / 20, abs=1e-6)


def test_the_paired_test_by_hand() -> None:
    """Twelve against four: the exact test has 0.0768, and half the probability of the outcome itself is taken off."""
    first = np.array([True] * 12 + [False] * 4 + [True] * 50)
    second = np.array([False] * 12 + [True] * 4 + [True] * 50)
    comparison = compare(first, second)
    assert (comparison.only_first, comparison.only_second) == (12, 4)
    # Binomial(16, 1/2): 2 P(X <= 4) = 2 · 2517 / 65536, P(X = 4) = 1820 / 65536
    assert comparison.p_value == pytest.approx((2 * 2517 - 1820) / 65536)
    assert compare(second, first).p_value == comparison.p_value
    assert compare(first, first).p_value == 1.0


def test_two_models_that_are_equally_good_differ_significantly_in_five_of_a_hundred_pairs() -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(2000):
        hard = rng.random(700) < 0.3  # where models err, and not the same ones
        first, second = (~hard | (rng.random(700) < 0.6) for _ in range(2))
        rejected += compare(first, second).p_value < 0.05
    assert 0.04 <= rejected / 2000 <= 0.06


def test_a_model_that_is_better_is_found() -> None:
    rng = np.random.default_rng(0)
    significant = []
    for _ in range(200):
        second = rng.random(700) < 0.9
        first = second | (rng.random(700) < 0.4)  # repairs four of ten mistakes
        significant.append(compare(first, second).p_value < 0.05)
    assert np.mean(significant) > 0.95
