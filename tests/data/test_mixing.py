"""MixUp and CutMix: images and labels are mixed in the same fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart.data.augmentation import build_mixing


def mixed(seed: int = 0, **alphas: float) -> tuple[Tensor, Tensor]:
    """Mix eight images, each of one brightness and of a class of its own."""
    mixing = build_mixing(8, **alphas)
    assert mixing is not None
    torch.manual_seed(seed)
    images, targets = mixing(torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16).clone(), torch.arange(8))
    return images, targets


def test_labels_are_mixed_in_the_fractions_of_the_images() -> None:
    for alphas in ({"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        images, targets = mixed(**alphas)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        # With both methods, the mean brightness is that of the classes, weighted by their fractions.
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(8.0), rtol=1e-4, atol=1e-4)
        assert ((targets > 0).sum(1) == 2).all()


def test_mixup_blends_and_cutmix_cuts() -> None:
    blended, _ = mixed(mixup=0.4, cutmix=0.0)
    assert all(len(image.unique()) == 1 for image in blended)
    cut, _ = mixed(mixup=0.0, cutmix=1.0)
    assert all(len(image.unique()) == 2 for image in cut)
    assert build_mixing(8, mixup=0.0, cutmix=0.0) is None


def test_the_seed_decides() -> None:
    assert torch.equal(mixed(1, mixup=0.2, cutmix=1.0)[0], mixed(1, mixup=0.2, cutmix=1.0)[0])
    assert not torch.equal(mixed(1, mixup=0.2, cutmix=0.0)[0], mixed(2, mixup=0.2, cutmix=0.0)[0])


def test_random_erasing_has_cached_features_of_several_views(train: Callable[..., dict[str, Any]]) -> None:
    metrics = train("augment.random_erasing=0.5", "epochs=3", "data.train_per_class=3", "features.views=3")
    assert metrics["features/computed"] + metrics["features/cached"] == 30 * 3 + 30 + 90 + 90  # three views of each


@pytest.mark.parametrize("option", ["loss.mixup=0.2", "loss.cutmix=1.0"])
def test_a_frozen_backbone_sees_mixed_images(option: str, train: Callable[..., dict[str, Any]]) -> None:
    metrics = train(option, "epochs=1", "data.train_per_class=3")
    assert "features/computed" not in metrics  # features of mixed images are not mixed features
