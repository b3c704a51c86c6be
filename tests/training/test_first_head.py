"""The head that fine-tuning starts from: `finetune.head_epochs=auto` fits it to its optimum, or says why not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from headstart.utils.errors import ConfigError
from tests.helpers.commands import command
from tests.helpers.runs import (
    DIGITS,
    FEW,
    SMALL,
    Train,
    composed,
    findings,
    interrupt_after,
    read_metrics,
    tensors,
    weights,
)
from tests.helpers.session import Once

FITTED = ("finetune=head_then_full", "model.weights=default")
STILL = ("lr=1e-12", "epochs=1", "finetune.batchnorm=frozen")  # a run that ends where it begins
CANNOT = "finetune.head_epochs=auto: 1, as the head cannot be fitted: "


def check_close(head: Tensor, expected: Tensor) -> None:
    assert float((head - expected).norm() / expected.norm()) < 1e-5


def hyperparameters(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    return saved


@pytest.mark.parametrize(
    ("overrides", "of_lbfgs"),
    [
        ((), ()),
        (("loss.class_weights=balanced", "loss.label_smoothing=0.1"), None),
        (("data.sampling=balanced",), ("loss.class_weights=balanced",)),
        (("augment=flip", "loss.mixup=0.2", "callbacks.ema=0.9", "scheduler=cosine"), ()),
        (("freeze=block1", "finetune=gradual", "finetune.head_epochs=auto"), ()),
    ],
)
def test_training_begins_at_the_head_that_lbfgs_fits_whatever_the_seed(
    overrides: tuple[str, ...],
    of_lbfgs: tuple[str, ...] | None,
    hard: Path,
    made_once: Once,
    train: Train,
    tmp_path: Path,
) -> None:
    data = ("data=imagefolder", f"data.root={hard}")  # 12, 20 and 28 images of the three classes
    settings = overrides if of_lbfgs is None else of_lbfgs
    words = ("optimizer=lbfgs", "model.weights=default", *data, *settings)
    frozen = made_once(f"lbfgs {' '.join(settings)}/run", lambda folder: train(*words, folder=folder))
    expected = read_metrics(frozen)
    metrics = train(*FITTED, *STILL, *data, *overrides, "seed=3", folder=tmp_path / "first")
    check_close(weights(tmp_path / "first")["head.weight"], weights(frozen)["head.weight"])
    assert metrics["head/weight_decay"] == pytest.approx(expected["auto/weight_decay"])
    assert metrics["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-3)
    assert metrics["head/val/loss"] == pytest.approx(expected["val/loss"], rel=1e-3)
    assert metrics["head/val/accuracy"] == expected["val/accuracy"]
    assert 0 < metrics["head/log_loss"] < np.log(3)


@pytest.mark.usefixtures("own_cache")
def test_a_first_head_takes_no_epoch_and_no_feature_that_a_frozen_run_has_computed(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("freeze=true", "model.weights=default", "epochs=1", *FEW, folder=tmp_path / "frozen")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        metrics = train(*FITTED, "epochs=2", *FEW, folder=tmp_path / "whole")
    assert f"features: {30 + metrics['data/val_size']} from cache, 0 computed" in caplog.text
    assert f"fitted before the first epoch; its weight decay is {metrics['head/weight_decay']:.3g}, with" in caplog.text
    assert f"{metrics['head/log_loss']:.4f} ± " in caplog.text
    checkpoint = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        assert group["lr"] == pytest.approx(1e-4), "the head trains at the backbone's rate"
    saved = checkpoint["hyper_parameters"]
    assert saved["finetune"]["head_epochs"] == 0
    names = ("weight_decay", "log_loss", "val/accuracy", "val/loss")
    assert saved["fitted_head"] == {name: metrics[f"head/{name}"] for name in names}
    assert json.loads((tmp_path / "whole" / "model" / "model.json").read_text())["fitted_head"] == saved["fitted_head"]
    assert metrics["params/trainable"] == metrics["params/total"]
    assert metrics["epochs/run"] == 2
    assert metrics["time/head_s"] > 0
    assert "features/computed" not in metrics  # no epoch trains on them


def test_a_run_that_was_cut_off_is_not_fitted_again_and_ends_as_one_that_was_not(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = (*FITTED, "augment=flip", "callbacks.ema=0.9", "epochs=3", *FEW)
    whole = train(*overrides, folder=tmp_path / "whole")
    interrupt_after(1, *overrides, folder=tmp_path / "part")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        rest = train(*overrides, f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt", folder=tmp_path / "rest")
    assert findings(rest) == findings(whole)
    expected = tensors(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in tensors(tmp_path / "rest").items())
    assert "head_epochs" not in caplog.text
    assert "features" not in caplog.text


def test_what_began_with_an_epoch_of_the_head_goes_on_so(train: Train, tmp_path: Path) -> None:
    """Though its head could be fitted now: the limit is higher, or it is a run of an earlier version."""
    overrides = (*FITTED, "epochs=3", *FEW)
    limited = (*overrides, "features.max_gb=1e-9")
    whole = train(*limited, folder=tmp_path / "whole")
    interrupt_after(2, *limited, folder=tmp_path / "part")
    rest = train(*overrides, f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt", folder=tmp_path / "rest")
    assert findings(rest) == findings(whole)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("head=mlp",), "head=mlp is not linear"),
        (("features=off",), "features=off caches none"),
        (("features.max_gb=1e-9",), "the features exceed features.max_gb"),
        (("trainer.limit_train_batches=1",), "trainer.limit_*_batches leaves images out, or trainer.strategy starts"),
    ],
)
def test_a_head_that_cannot_be_fitted_trains_alone_for_an_epoch(
    overrides: tuple[str, ...], reason: str, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*FITTED, *FEW, "epochs=2", *overrides)
    with caplog.at_level(logging.INFO):
        metrics = train(*settings, folder=tmp_path / "auto")
    assert f"{CANNOT}{reason}" in caplog.text
    assert hyperparameters(tmp_path / "auto")["fitted_head"] is None
    assert findings(metrics) == findings(train(*settings, "finetune.head_epochs=1", folder=tmp_path / "one"))


def test_a_learning_rate_is_measured_with_a_head_that_has_to_learn(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the loss begins at its optimum, it falls at no rate."""
    with caplog.at_level(logging.INFO):
        train(*FITTED, "lr=auto", "data.train_per_class=10", "epochs=2")
    assert f"{CANNOT}lr=auto measures how fast a head with random weights learns" in caplog.text


def test_a_single_epoch_is_never_spent_on_the_head_alone(train: Train, tmp_path: Path) -> None:
    metrics = train(*FITTED, *FEW, "epochs=1", "head=mlp", folder=tmp_path / "run")
    assert hyperparameters(tmp_path / "run")["finetune"]["head_epochs"] == 0
    assert metrics["params/trainable"] == metrics["params/total"]


def test_groups_stay_together_in_the_folds_that_choose_the_weight_decay(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one group for training nothing can be held out."""
    rng = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "images" / "ab"[index % 2] / f"g{index // 12}_{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    data = ("data=imagefolder", f"data.root={tmp_path}/images", r"data.group_pattern='(g\d)_'", "data.test_fraction=0")
    with caplog.at_level(logging.INFO):
        train(*FITTED, *data, "data.val_fraction=0.5", "epochs=2", folder=tmp_path / "run")
    assert f"{CANNOT}data.group_* leaves nothing to cross-validate with" in caplog.text
    with pytest.raises(ConfigError, match="all training images are of one group.*Give a number"):
        train("optimizer=lbfgs", "model.weights=default", *data, "data.val_fraction=0.5", folder=tmp_path / "lbfgs")


def test_a_strategy_that_is_chosen_starts_from_a_fitted_head_too(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.training.tuning.choose_strategy.FEW", 1)
    auto = ("finetune=auto", "model.weights=default", "epochs=1", *FEW)
    metrics = train(*auto, folder=tmp_path / "auto")
    saved = hyperparameters(tmp_path / "auto")
    assert saved["chosen"]["strategy"] == "head_then_full"
    named = train("finetune=head_then_full", *auto[1:], folder=tmp_path / "named")
    assert metrics["head/weight_decay"] == named["head/weight_decay"]
    assert metrics["test/loss"] == named["test/loss"]


def test_two_processes_begin_with_the_head_of_one(train: Train, tmp_path: Path) -> None:
    settings = (*FITTED, *STILL, "data.train_per_class=7", *SMALL[1:], *DIGITS)
    result = command(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}/two")
    assert result.returncode == 0, result.stderr
    two, one = read_metrics(tmp_path / "two"), train(*settings, folder=tmp_path / "one")
    check_close(tensors(tmp_path / "two")["head.weight"], tensors(tmp_path / "one")["head.weight"])
    assert two["head/weight_decay"] == one["head/weight_decay"]
    assert two["test/accuracy"] == one["test/accuracy"]


def test_head_epochs_are_a_number_or_auto() -> None:
    assert composed("finetune=head_then_full").finetune.head_epochs == "auto"
    with pytest.raises(ConfigError, match=r"finetune.head_epochs=some: expected a whole number of at least 0, or auto"):
        composed("finetune=full", "finetune.head_epochs=some")
    with pytest.raises(ConfigError, match=r"finetune.head_epochs: freeze=true trains the head alone"):
        composed("finetune.head_epochs=auto")
