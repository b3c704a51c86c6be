"""`finetune=auto`: by how many images there are, and how well the pretrained features tell them apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.choosing import FEW, FROZEN, MANY, SCRATCH, SIMILAR, USELESS, chosen, similarity
from headstart.config.composing import finetune_preset
from headstart.errors import ModelError

from .conftest import composed
from .test_config import choices
from .test_train import figures, interrupt_after, tensors

Train = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("images", "alike", "strategy"),
    [
        (FEW - 1, SIMILAR, FROZEN),
        (FEW, SIMILAR, "head_then_full"),
        (FEW - 1, SIMILAR - 0.01, "gradual"),
        (FEW, SIMILAR - 0.01, "head_then_full"),
        (MANY, USELESS - 0.01, SCRATCH),
        (MANY - 1, USELESS - 0.01, "head_then_full"),
    ],
)
def test_the_cases(images: float, alike: float, strategy: str) -> None:
    choice = chosen(images, alike)
    assert choice.strategy == strategy
    why, then = str(choice).splitlines()
    assert f"{images:,.0f} a class" in why
    assert f"{alike:.0%} of the way from guessing to no mistake" in why
    assert "Another choice: finetune=NAME, or freeze=true" in then
    assert strategy in (FROZEN, SCRATCH) or f"finetune={strategy}" in then


def test_similarity_is_what_a_probe_gets_right_beyond_guessing() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 80, 20])  # always the first would be right three times in four
    noise = torch.from_numpy(rng.normal(size=(400, 16))).float()
    apart = noise + 8 * torch.nn.functional.one_hot(torch.from_numpy(labels), 16)
    assert similarity(apart, labels, 0) > 0.95
    assert similarity(noise, labels, 0) < 0.1
    half = noise + 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), 16)
    assert 0.2 < similarity(half, labels, 0) < 0.95
    assert similarity(apart, labels, 1) == similarity(apart, labels, 1)
    assert similarity(apart[:3], np.array([0, 1, 2]), 0) == 0  # nothing can be held out


@pytest.mark.parametrize("name", [name for name in choices("finetune") if name not in ("none", "auto")])
def test_a_choice_has_the_settings_of_its_file(name: str) -> None:
    assert finetune_preset(name) == composed(f"finetune={name}").finetune.settings()
    assert composed(f"finetune={name}").freeze is False


def test_a_run_chooses_and_a_resumed_one_keeps_its_choice(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.choosing.SIMILAR", 1.1)
    words = ("finetune=auto", "model.weights=default", "epochs=4", "finetune.batchnorm=frozen")
    with caplog.at_level(logging.INFO):
        whole = train(*words, folder=tmp_path / "whole")
    lines = [record.message for record in caplog.records if record.message.startswith("finetune=auto")]
    assert len(lines) == 2
    assert whole["auto/images_a_class"] == 10
    assert 0.5 < whole["auto/similarity"] <= 1
    saved = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["chosen"] == {
        "strategy": "gradual",
        "images": 10,
        "similarity": whole["auto/similarity"],
    }
    assert saved["finetune"] == finetune_preset("gradual") | {"batchnorm": "frozen"}  # what was set goes first
    named = train("finetune=gradual", *words[1:], folder=tmp_path / "named")
    assert figures(named) == {name: value for name, value in figures(whole).items() if not name.startswith("auto/")}

    interrupt_after(2, *words, folder=tmp_path / "part")
    last = f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt"
    rest = train(*words, last, folder=tmp_path / "rest")
    assert figures(rest) == figures(whole)
    with pytest.raises(ModelError, match="is not of a run with finetune=auto"):
        train(*words, f"ckpt_path={tmp_path}/named/checkpoints/last.ckpt")


def test_a_frozen_choice_is_the_run_of_a_frozen_backbone(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.choosing.SIMILAR", 0.0)
    auto = train("finetune=auto", "model.weights=default", "epochs=2", folder=tmp_path / "auto")
    frozen = train("freeze=true", "model.weights=default", "epochs=2", folder=tmp_path / "frozen")
    assert auto["params/trainable"] == frozen["params/trainable"]
    assert auto["features/cached"] >= auto["data/train_size"]  # what was looked at is not computed again
    assert auto["test/loss"] == frozen["test/loss"]
    expected = tensors(tmp_path / "frozen")
    assert all(torch.equal(value, expected[name]) for name, value in tensors(tmp_path / "auto").items())


def test_useless_weights_are_not_begun_with(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.choosing.USELESS", 1.1)
    monkeypatch.setattr("headstart.choosing.MANY", 5)
    auto = train("finetune=auto", "model.weights=default", "epochs=1", folder=tmp_path / "auto")
    assert auto["params/trainable"] == auto["params/total"]
    saved = json.loads((tmp_path / "auto" / "model" / "model.json").read_text())
    assert saved["chosen"]["strategy"] == SCRATCH
    scratch = train("freeze=false", "model.weights=null", "epochs=1", folder=tmp_path / "scratch")
    assert auto["test/accuracy"] == pytest.approx(scratch["test/accuracy"], abs=0.2)  # other random weights
