"""lr=auto: the test finds a rate that trains, and changes nothing else, not by a bit."""

from __future__ import annotations

import json
import multiprocessing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from headstart.models.unfreezing import Finetuning
from headstart.report.run_report import write_report
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer
from headstart.training.tuning.lr_range_test import DIVERGED, STEPS, lr_range_test, smooth, suggest_lr
from headstart.utils.errors import ConfigError
from tests.helpers.classifiers import classifier, images, quiet_trainer, random_states, same, to_tensor, unchanged
from tests.helpers.commands import command
from tests.helpers.runs import FEW, SIZE, SMALL, Train, composed, interrupt_after, read_metrics, small, weights

# --- nothing is changed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True, "block1"])
@pytest.mark.parametrize("workers", [0, 2])
def test_model_and_random_states_are_as_they_were(freeze: bool | str, workers: int) -> None:
    model, data = classifier(freeze=freeze), images(workers=workers)
    optimizer = model.build_optimizer()
    own, children = deepcopy(optimizer.state_dict()), multiprocessing.active_children()
    with unchanged(model):
        lr_range_test(model, data, quiet_trainer())
    assert optimizer.state_dict() == own
    assert multiprocessing.active_children() == children  # the workers have gone
    assert all(float(metric.update_count) == 0 for metric in metrics_of(model))


def metrics_of(model: TransferClassifier) -> list[Any]:
    return [metric for split in model.metrics.values() for metric in split.values()]  # type: ignore[operator]


def test_the_scale_of_mixed_precision_is_as_it_was() -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3))
    before = precision.state_dict()
    result = lr_range_test(classifier(), images(), quiet_trainer(plugins=[precision]))
    assert precision.state_dict() == before
    assert np.isfinite(result.losses).all()


def test_a_fit_after_it_is_the_fit_without_it() -> None:
    def fit(tested_before: bool) -> dict[str, Tensor]:
        model, data = classifier(optimizer=partial(build_optimizer, name="adam", lr=1e-2)), images()
        pl.seed_everything(3, verbose=False)
        trainer = quiet_trainer(max_epochs=2)
        if tested_before:
            lr_range_test(model, data, trainer)
        trainer.fit(model, data)
        return model.state_dict()

    assert same(fit(tested_before=True), fit(tested_before=False))


@pytest.mark.parametrize("overrides", [("freeze=false", "augment=pad_crop"), ("head=mlp", "model.weights=default")])
def test_a_run_is_the_run_with_that_number(overrides: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    """Through the network, and on the features of a frozen one."""
    common = (*overrides, *FEW, "batch_size=8", "epochs=2")
    result = train(*common, "lr=auto", folder=tmp_path / "auto")
    given = train(*common, f"lr={result['auto/lr']}", folder=tmp_path / "number")
    assert same(weights(tmp_path / "auto"), weights(tmp_path / "number"))
    assert {key: value for key, value in result.items() if not key.startswith(("time/", "auto/", "features/"))} == {
        key: value for key, value in given.items() if not key.startswith(("time/", "features/"))
    }


def test_the_same_seed_finds_the_same_rate() -> None:
    first, second = (lr_range_test(classifier(), images(), quiet_trainer()) for _ in range(2))
    assert np.array_equal(first.losses, second.losses)
    torch.manual_seed(99)  # whatever was drawn before
    assert lr_range_test(classifier(), images(), quiet_trainer()).lr == first.lr
    other = lr_range_test(classifier(), images(), quiet_trainer(), seed=1)
    assert not np.array_equal(first.losses, other.losses)  # another dropout


# --- what it does --------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """One weight: the logit of "bright" is it times the feature. Its loss has a known curvature at 0: feature² / 4."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        logit = self.weight * features[:, :1]
        return torch.cat([-logit / 2, logit / 2], dim=1)


class Sign(nn.Module):
    """The feature `size`, negative for dark images."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True).flatten(1)
        return self.size * (mean - 0.48).sign()


@pytest.mark.parametrize("size", [2.0, 20.0, 200.0])
def test_the_rate_follows_the_curvature(size: float) -> None:
    """Gradient descent is stable below 2 / curvature; near it, one step does what is to be done."""
    sgd = partial(build_optimizer, name="sgd", lr=1.0)
    model = TransferClassifier(Sign(size), Logits(), ("dark", "bright"), optimizer=sgd)
    result = lr_range_test(model, images(transform=to_tensor), quiet_trainer())
    stable = 2 / (size**2 / 4)
    assert stable / 100 < result.lr < stable


def test_groups_keep_their_ratios() -> None:
    """A rate next to 0 for the backbone leaves it where it is; the head's own is what is suggested."""

    def losses(ratio: float, freeze: bool) -> Any:
        sgd = partial(build_optimizer, name="sgd", lr=1e-3)
        finetuning = Finetuning(backbone_lr=ratio, batchnorm="frozen")
        model = classifier(optimizer=sgd, freeze=freeze, finetuning=finetuning)
        for dropout in (model.head[0], model.backbone.block2[-1]):  # type: ignore[index]
            dropout.p = 0.0  # as in a frozen backbone
        return lr_range_test(model, images(), quiet_trainer()).losses

    still, frozen, trained = losses(1e-12, freeze=False), losses(1.0, freeze=True), losses(0.1, freeze=False)
    assert np.allclose(still, frozen)
    assert not np.allclose(still[: len(trained)], trained[: len(still)])


def test_what_is_frozen_stays_frozen_in_the_copy() -> None:
    """Its BatchNorm would drift, and the losses with it."""
    model = classifier(freeze=True)
    model.head[0].p = 0.0  # type: ignore[index, union-attr]
    result = lr_range_test(model, images(transform=to_tensor), quiet_trainer())
    model.eval()
    data = images(transform=to_tensor)
    pixels, labels = next(iter(data.train_dataloader()))
    assert result.losses[0] == pytest.approx(nn.functional.cross_entropy(model(pixels), labels).item(), abs=1e-6)


def test_it_stops_where_the_loss_diverges() -> None:
    sgd = partial(build_optimizer, name="sgd", lr=1.0)
    model = TransferClassifier(Sign(20.0), Logits(), ("dark", "bright"), optimizer=sgd)
    mislabelled = images(transform=to_tensor)
    mislabelled.splits["train"].labels[::5] = 0  # no weight is right for all of them
    result = lr_range_test(model, mislabelled, quiet_trainer())
    assert 10 < len(result.rates) < STEPS
    assert result.smoothed[-1] > DIVERGED * result.smoothed.min()
    assert result.lr < result.rates[-1]


def test_fewer_images_than_steps_are_shown_again() -> None:
    result = lr_range_test(classifier(), images(9), quiet_trainer())
    assert len(result.losses) == STEPS


def test_a_loss_that_is_not_finite_is_said_and_changes_nothing() -> None:
    model = classifier()
    nn.init.constant_(model.head[1].weight, float("nan"))  # type: ignore[index]
    drawn = random_states()
    with pytest.raises(ConfigError, match=r"lr=auto: the loss is not finite .*Check the weights for values that are"):
        lr_range_test(model, images(), quiet_trainer())
    assert random_states() == drawn


def test_a_loss_that_falls_nowhere_is_said() -> None:
    model = TransferClassifier(Sign(0.0), Logits(), ("dark", "bright"))
    with pytest.raises(
        ConfigError, match=r"lr=auto: the loss falls at no learning rate .*set a number, such as lr=1e-3"
    ):
        lr_range_test(model, images(), quiet_trainer())


def test_the_suggestion_is_where_most_of_the_fall_is_done() -> None:
    rates = np.geomspace(1e-7, 10, 100)
    losses = 1 + 1 / (1 + (rates / 1e-3) ** 2)  # from 2 to 1, half of it at 1e-3
    losses[rates > 1] = 7.0
    lr = suggest_lr(rates, losses, losses)
    assert 1e-3 < lr < 3e-3
    assert lr == float(f"{lr:.1e}")  # to be repeated from what the log says
    assert smooth([2.0, 2.0, 2.0]).tolist() == pytest.approx([2.0, 2.0, 2.0])


# --- whole runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from headstart.train import run

    folder = tmp_path_factory.mktemp("auto") / "run"
    run(composed(*small("lr=auto", "batch_size=8", "epochs=2", "freeze=false", "model.weights=default")), folder)
    return folder


def test_the_rate_is_written_where_it_is_looked_for(finished: Path) -> None:
    lr = read_metrics(finished)["auto/lr"]
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["optimizer"]["lr"] == lr
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == lr
    assert json.loads((finished / "model" / "model.json").read_text())["optimizer"]["lr"] == lr
    config = (finished / "config.yaml").read_text()
    assert "\nlr: auto\n" in config
    assert "lr: ${lr}" in config
    header, *rows = (finished / "lr_range.csv").read_text().splitlines()
    assert header == "rate,loss,smoothed_loss"
    assert 50 < len(rows) <= STEPS


def test_a_report_shows_the_curve_also_when_it_is_made_again(finished: Path) -> None:
    page = write_report(finished, None)
    assert (finished / "report" / "figures" / "lr_range.png").exists()
    assert 'id="lr_range"' in page.read_text()


def test_a_resumed_run_takes_the_rate_of_its_checkpoint(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ("lr=auto", "freeze=false", "batch_size=8", "data.train_per_class=6", "epochs=3", "scheduler=cosine")
    whole = train(*overrides, folder=tmp_path / "whole")
    interrupt_after(1, *overrides, folder=tmp_path / "part")
    caplog.clear()
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    resumed = train(*overrides, f"ckpt_path={last}", folder=tmp_path / "resumed")
    assert "lr=auto" not in caplog.text
    assert resumed["auto/lr"] == whole["auto/lr"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    assert not (tmp_path / "resumed" / "lr_range.csv").exists()


def test_all_processes_train_at_the_rate_of_the_first(tmp_path: Path) -> None:
    overrides = ("trainer=ddp", "trainer.accelerator=cpu", "epochs=1", "freeze=false", "batch_size=auto", *SMALL[2:])
    overrides += ("model=timm", "model.name=tiny_vgg", "model.weights=null", *SIZE)
    result = command(*overrides, "lr=auto", "data.train_per_class=null", f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    metrics = read_metrics(tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == metrics["auto/lr"]
    steps = checkpoint["global_step"]
    assert steps == -(-metrics["data/train_size"] // 2 // metrics["auto/batch_size"])
    assert (result.stdout + result.stderr).count("lr=auto: ") <= 1
