"""`finetune=auto`: by how many images there are, and how well the pretrained features tell them apart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.config.presets import finetune_preset
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import evaluation_transform
from headstart.models.backbone import build_backbone
from headstart.training.tuning.choose_strategy import (
    FEW,
    FROZEN,
    LEAST,
    MANY,
    PROBED,
    SCRATCH,
    SIMILAR,
    USELESS,
    balanced_subset,
    decide,
    similarity,
)
from headstart.utils.errors import ModelError
from tests.helpers.commands import ended, script
from tests.helpers.runs import Train, choices, composed, findings, interrupt_after, tensors


@pytest.mark.parametrize(
    ("images", "alike", "strategy"),
    [
        (FEW - 1, SIMILAR, FROZEN),
        (FEW, SIMILAR, "head_then_full"),
        (FEW - 1, SIMILAR - 0.01, "gradual"),
        (FEW, SIMILAR - 0.01, "head_then_full"),
        (MANY, USELESS - 0.01, SCRATCH),
        (MANY - 1, USELESS - 0.01, "head_then_full"),
        (FEW - 1, None, FROZEN),
        (MANY, None, "head_then_full"),  # what was not measured throws no weights away
    ],
)
def test_the_cases(images: float, alike: float | None, strategy: str) -> None:
    choice = decide(images, alike)
    assert choice.strategy == strategy
    why, then = str(choice).splitlines()
    assert f"{images:,.0f} per class" in why
    measured = "too few to measure" if alike is None else f"{alike:.0%} of the way from guessing to no errors"
    assert measured in why
    assert "To choose yourself: finetune=NAME, or freeze=true" in then
    assert strategy in (FROZEN, SCRATCH) or f"finetune={strategy}" in then


def test_similarity_is_what_a_probe_gets_right_beyond_guessing() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 80, 20])  # always the first would be right three times in four
    noise = torch.from_numpy(rng.normal(size=(400, 16))).float()
    apart = noise + 8 * torch.nn.functional.one_hot(torch.from_numpy(labels), 16)
    assert similarity(apart, labels) > 0.95
    assert similarity(noise, labels) < 0.1
    half = noise + 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), 16)
    assert 0.2 < similarity(half, labels) < 0.95
    assert similarity(apart[:3], np.array([0, 1, 2])) is None  # nothing can be left out
    rare = np.array([0] * 998 + [1] * 2)  # too rare to be measured
    assert similarity(torch.randn(1000, 4), rare) is None
    assert similarity(apart[:7], np.array([0, 0, 0, 0, 0, 0, 1])) is None  # of one class alone


def test_many_classes_and_rare_ones_are_looked_at() -> None:
    labels = np.concatenate([np.repeat(np.arange(800), 6), [800, 800, 801]])
    pixels = np.zeros((len(labels), 8, 8, 3), dtype=np.uint8)
    transform = evaluation_transform(build_backbone("headstart", "glyphnet", None).preprocessing)
    train = {"train": Samples(pixels, labels, [""] * len(labels))}
    some = balanced_subset(ImageDataModule(train, training=transform, evaluation=transform, batch_size=32), 0)
    counts = np.bincount(some.splits["train"].labels)
    assert (counts[:800] == LEAST).all()
    assert (counts[800:] == [2, 1]).all()
    features = torch.randn(802, 64)[torch.from_numpy(some.splits["train"].labels)]
    separation = similarity(features + 0.1 * torch.randn(features.shape), some.splits["train"].labels)
    assert separation is not None
    assert separation > 0.9
    few = np.repeat([0, 1], [1950, 3])
    some = balanced_subset(
        ImageDataModule(
            {"train": Samples(pixels[:1953], few, [""] * 1953)}, training=transform, evaluation=transform, batch_size=32
        ),
        0,
    )
    assert (np.bincount(some.splits["train"].labels) == [PROBED // 2, 3]).all()


@pytest.mark.parametrize("name", [name for name in choices("finetune") if name not in ("none", "auto")])
def test_a_choice_has_the_settings_of_its_file(name: str) -> None:
    assert finetune_preset(name) == composed(f"finetune={name}").finetune.settings()
    assert composed(f"finetune={name}").freeze is False


def test_a_run_chooses_and_a_resumed_one_keeps_its_choice(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.training.tuning.choose_strategy.SIMILAR", 1.1)
    with caplog.at_level(logging.INFO):
        short = train("finetune=auto", "model.weights=default", "epochs=1", folder=tmp_path / "short")
    assert short["params/trainable"] == short["params/total"]  # few epochs leave something to unfreeze in
    caplog.clear()
    overrides = ("finetune=auto", "model.weights=default", "epochs=4", "finetune.batchnorm=frozen")
    with caplog.at_level(logging.INFO):
        whole = train(*overrides, folder=tmp_path / "whole")
    lines = [record.message for record in caplog.records if record.message.startswith("finetune=auto")]
    assert len(lines) == 2
    assert whole["auto/images_a_class"] == 10
    assert 0.5 < whole["auto/similarity"] <= 1
    saved = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["chosen"] == {"strategy": "gradual", "images": 10, "similarity": whole["auto/similarity"]}
    set_or_found = {"batchnorm": "frozen", "head_epochs": 0}  # what was set goes first; its head is fitted
    assert saved["finetune"] == finetune_preset("gradual") | set_or_found
    named = train("finetune=gradual", *overrides[1:], folder=tmp_path / "named")
    chosen = {name: value for name, value in findings(whole).items() if not name.startswith("auto/")}
    assert findings(named) == chosen

    interrupt_after(2, *overrides, folder=tmp_path / "part")
    last = f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt"
    rest = train(*overrides, last, folder=tmp_path / "rest")
    assert findings(rest) == findings(whole)
    with pytest.raises(ModelError, match="is not of a run with finetune=auto"):
        train(*overrides, f"ckpt_path={tmp_path}/named/checkpoints/last.ckpt")


def test_a_frozen_choice_is_the_run_of_a_frozen_backbone(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.training.tuning.choose_strategy.SIMILAR", 0.0)
    auto = train("finetune=auto", "model.weights=default", "epochs=2", folder=tmp_path / "auto")
    frozen = train("freeze=true", "model.weights=default", "epochs=2", folder=tmp_path / "frozen")
    assert auto["params/trainable"] == frozen["params/trainable"]
    assert auto["features/cached"] >= auto["data/train_size"]  # what was looked at is not computed again
    assert auto["test/loss"] == frozen["test/loss"]
    expected = tensors(tmp_path / "frozen")
    assert all(torch.equal(value, expected[name]) for name, value in tensors(tmp_path / "auto").items())


AGREE = """
import sys
import torch
from headstart.training.distributed import check_agreement
rank, strategy, meeting = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
check_agreement(strategy)
"""


def test_processes_that_choose_differently_say_so(tmp_path: Path) -> None:
    """In both of them: one alone would leave the other waiting for ever."""
    for result in map(ended, [script(AGREE, str(rank), FROZEN, tmp_path / "same") for rank in range(2)]):
        assert result.returncode == 0, result.stderr
    different = [script(AGREE, str(rank), (FROZEN, "gradual")[rank], tmp_path / "other") for rank in range(2)]
    for result in map(ended, different):
        assert result.returncode == 1
        assert "chosen differently: frozen, gradual. Choose one: finetune=NAME" in result.stderr


def test_useless_weights_are_not_begun_with(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.training.tuning.choose_strategy.USELESS", 1.1)
    monkeypatch.setattr("headstart.training.tuning.choose_strategy.MANY", 5)
    auto = train("finetune=auto", "model.weights=default", "epochs=1", folder=tmp_path / "auto")
    assert auto["params/trainable"] == auto["params/total"]
    saved = json.loads((tmp_path / "auto" / "model" / "model.json").read_text())
    assert saved["chosen"]["strategy"] == SCRATCH
    scratch = train("freeze=false", "model.weights=null", "epochs=1", folder=tmp_path / "scratch")
    assert auto["test/accuracy"] == pytest.approx(scratch["test/accuracy"], abs=0.2)  # other random weights
