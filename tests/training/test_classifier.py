"""What the loss and the schedules are: by their values."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from headstart.data.datamodule import class_weights
from headstart.data.dataset import Samples
from headstart.models.unfreezing import Finetuning
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer, build_schedule, direction
from tests.helpers.classifiers import quiet_trainer


def test_balanced_weights_are_the_inverse_of_the_fractions() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2] * 4)
    samples = Samples([""] * 12, labels, [""] * 12)
    weights = class_weights("balanced", samples, 3)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([12 / 18, 12 / 6, 12 / 12]))
    assert class_weights(None, samples, 3) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_the_training_loss_is_smoothed_and_weighted_and_that_of_evaluation_is_not(
    smoothing: float, weights: Tensor | None
) -> None:
    torch.manual_seed(0)
    classifier = TransferClassifier(
        nn.Flatten(), nn.Linear(12, 3), ["a", "b", "c"], label_smoothing=smoothing, class_weights=weights
    )
    batch = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 2, 1])
    expected = F.cross_entropy(classifier(batch[0]), batch[1], weights, label_smoothing=smoothing)
    torch.testing.assert_close(classifier.training_step(batch, 0), expected)
    classifier.validation_step(batch, 0)
    plain = F.cross_entropy(classifier(batch[0]), batch[1])
    torch.testing.assert_close(classifier.compute_metrics("val")["loss"], plain)


def rates(name: str, epochs: int = 10, *, head_epochs: int = 0, **settings: float) -> list[float]:
    """The learning rate of every step of a training with lr=1 and four steps an epoch, as Lightning drives it."""

    class Watched(TransferClassifier):
        def on_train_batch_start(self, batch: object, batch_idx: int) -> None:  # noqa: ARG002
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    seen: list[float] = []
    optimizer = partial(build_optimizer, name="sgd", lr=1.0, momentum=0.5)
    scheduler = partial(build_schedule, name=name, **settings)
    classifier = Watched(
        nn.Flatten(),
        nn.Linear(12, 3),
        list("abc"),
        freeze=False,
        finetuning=Finetuning(head_epochs),
        optimizer=optimizer,
        scheduler=scheduler,
        monitor="train/accuracy",
    )
    data = TensorDataset(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))
    trainer = quiet_trainer(max_epochs=epochs)
    trainer.fit(classifier, DataLoader(data))
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.5
    return seen


def test_schedules() -> None:
    assert rates("none") == [1.0] * 40
    assert rates("step", step_size=2, gamma=0.5)[::8] == [1.0, 0.5, 0.25, 0.125, 0.0625]

    cosine = rates("cosine", warmup_epochs=1)
    assert cosine[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # four steps of warm-up, then the peak
    assert cosine[22] == pytest.approx(0.5, abs=0.01)
    assert cosine[-1] == pytest.approx((1 + math.cos(math.pi * 35 / 36)) / 2)
    assert rates("cosine", warmup_epochs=0)[0] == 1.0

    onecycle = rates("onecycle", pct_start=0.3)
    assert max(onecycle) == pytest.approx(1.0)
    assert onecycle.index(max(onecycle)) == 11
    assert onecycle[-1] < onecycle[0] < 0.05
    assert max(rates("onecycle", pct_start=1 / 40)) <= 1.0  # a rise of one step, by whose length torch divides

    plateau = rates("plateau", factor=0.1, patience=2)  # the labels are all alike: nothing improves after the first
    assert plateau[0] == 1.0
    assert plateau[-1] == pytest.approx(0.01)


def test_what_unfreezes_has_a_schedule_of_its_own() -> None:
    """The head's four epochs rise and fall; those after them begin again."""
    for name, settings in {"cosine": {"warmup_epochs": 1.0}, "onecycle": {"pct_start": 0.3}}.items():
        staged = rates(name, head_epochs=4, **settings)
        assert staged == pytest.approx(rates(name, 4, **settings) + rates(name, 6, **settings))
        assert max(staged[:16]) > 0.9 < max(staged[16:])
    assert rates("cosine", 1, warmup_epochs=1.0)[-1] < 0.9  # warm-up takes half of a short training at most
    assert rates("step", head_epochs=4, step_size=2, gamma=0.5) == rates("step", step_size=2, gamma=0.5)


def test_a_stage_of_a_few_steps_has_no_schedule_of_its_own() -> None:
    """All its rates would be next to nothing."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    length = {"epochs": 10, "steps": 30, "monitor": "val/loss", "pct_start": 0.3}
    schedule = build_schedule(optimizer, "onecycle", first_epochs=1, **length)
    assert schedule is not None
    assert isinstance(schedule["scheduler"], torch.optim.lr_scheduler.OneCycleLR)
    schedule = build_schedule(optimizer, "onecycle", first_epochs=2, **length)
    assert schedule is not None
    assert isinstance(schedule["scheduler"], torch.optim.lr_scheduler.SequentialLR)


def test_losses_are_better_when_smaller() -> None:
    assert (direction("val/loss"), direction("train/accuracy"), direction("val/top5_accuracy")) == ("min", "max", "max")
