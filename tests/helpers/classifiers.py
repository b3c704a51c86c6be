"""A tiny classifier, images in memory for it, and what must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.training.classifier import TransferClassifier


def quiet_trainer(**settings: Any) -> pl.Trainer:
    """A Trainer that writes and prints nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False}
    return pl.Trainer(**({"accelerator": "cpu"} | quiet | settings))


def to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def noisy(image: Any) -> Tensor:
    """A random transform that draws from every generator."""
    drawn = torch.rand(()) + random.random() + np.random.random()
    return to_tensor(image) + 0.01 * drawn


def images(count: int = 60, *, workers: int = 0, transform: Callable[[Any], Tensor] = noisy) -> ImageDataModule:
    """Bright and dark images."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 2
    pixels = (rng.integers(0, 120, (count, 8, 8, 3)) + 130 * labels[:, None, None, None]).astype(np.uint8)
    samples = Samples(images=pixels, labels=labels, names=tuple(map(str, range(count))))
    return ImageDataModule(
        {"train": samples, "val": samples}, training=transform, evaluation=to_tensor, batch_size=8, num_workers=workers
    )


class Network(nn.Sequential):
    """Everything that has a state of its own in training: BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def classifier(*, freeze: bool | str = False, **settings: Any) -> TransferClassifier:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))
    return TransferClassifier(Network(), head, ("dark", "bright"), freeze=freeze, **settings)


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


@contextmanager
def unchanged(model: TransferClassifier) -> Iterator[None]:
    """Checks that neither the model nor any random state is changed in the `with` block, not by a bit."""

    def others() -> list[Any]:
        modes = [module.training for module in model.modules()]
        return [random_states(), modes, [(p.requires_grad, p.grad) for p in model.parameters()]]

    state, before = deepcopy(model.state_dict()), others()
    yield
    assert same(model.state_dict(), state)
    assert others() == before


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
