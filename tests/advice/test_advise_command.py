"""`headstart advise`: what it prints and leaves, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import headstart
from headstart.advice.result import Advice, Candidate
from headstart.cli.main import main
from headstart.config.schema import Config
from headstart.utils.errors import ConfigError, ModelError
from tests.helpers.advice import hand_made

Asked = list[tuple[Config, list[str], Sequence[str], bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the engine was asked to compare; in its place stands one that answers at once."""
    questions: Asked = []

    def advise(config: Config, candidates: Sequence[Candidate], *, overrides: Sequence[str], shown: bool) -> Advice:
        usable = [candidate.name for candidate in candidates if not candidate.problem]
        questions.append((config, usable, overrides, shown))
        return hand_made()

    engine: Any = ModuleType("headstart.advice.run")
    engine.advise = advise
    monkeypatch.setitem(sys.modules, "headstart.advice.run", engine)
    return questions


def test_the_table_fits_and_ends_with_what_to_do_next(asked: Asked, tmp_path: Path, capsys: Any) -> None:
    names = "advise.models=glyphnet,resnet18@null,resnet19"
    words = ["data=digits", names, "advise.minutes=2"]
    main(["advise", *words, "--out", str(tmp_path / "out")])
    config, candidates, overrides, shown = asked[0]
    assert overrides == words
    assert (candidates, shown) == (["glyphnet", "resnet18@null"], True)
    assert (config.advise.minutes, config.advise.prior, config.advise.fetch) == (2, "imagenet", False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[: lines.index(hand_made().reason)])) <= 100
    row = next(line for line in lines if line.strip().startswith("resnet50"))
    assert " ".join(row.split()) == "resnet50 not stated 94.9 (93.1–96.3) 95.7 (93.5–97.5) 61 102 recommended"
    assert any(" ".join(line.split()).startswith("vgg19 not on this machine: 575 MB") for line in lines)
    assert lines[-3:] == [
        "note: vit_b_16 was measured on 800 images only: the five minutes were spent.",
        f"next: {hand_made().command}",
        f"advise: {tmp_path / 'out' / 'index.html'}",
    ]
    assert json.loads((tmp_path / "out" / "advice.json").read_text())["recommended"] == "resnet50"
    assert f"headstart advise data=digits {names} advise.minutes=2" in (tmp_path / "out" / "index.html").read_text()


def test_python_has_the_same_advice(asked: Asked) -> None:
    advice = headstart.advise("advise.models=glyphnet", "advise.prior=off")
    assert advice == hand_made()
    config, candidates, overrides, shown = asked[0]
    assert overrides == ("advise.models=glyphnet", "advise.prior=off")
    assert (config.advise.prior, candidates, shown) == ("off", ["glyphnet"], False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("advise.minutes=0", r"advise.minutes=0.0: expected a number above 0."),
        ("advise.prior=imagenet21k", r"advise.prior: .* expected one of \['imagenet', 'off'\]"),
        ("advise.models=", "advise.models is empty: name at least one backbone"),
    ],
)
def test_wrong_values_are_errors(override: str, message: str, asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["advise", override, "--out", str(tmp_path / "out")])
    assert not asked
    assert not (tmp_path / "out").exists()


def test_nothing_is_computed_if_no_backbone_can_be_had(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of the backbones can be measured:\n  resnet19: .*Did you mean"):
        main(["advise", "advise.models=resnet19", "--out", str(tmp_path)])
    assert not asked


def test_the_digits_are_compared_and_what_was_computed_is_kept(tmp_path: Path, capsys: Any) -> None:
    models = "advise.models=glyphnet,glyphnet@null,simple_cnn,resnet19"
    for _ in range(2):
        main(["advise", models, "advise.minutes=60", "--out", str(tmp_path)])
        values = json.loads((tmp_path / "advice.json").read_text())
        assert values["recommended"] == "glyphnet"
        assert {measured["candidate"]["name"] for measured in values["measured"]} == {
            "glyphnet",
            "glyphnet@null",
            "simple_cnn",
        }
        assert [candidate["name"] for candidate in values["others"]] == ["resnet19"]
        assert values["images"] == 100
        best = values["measured"][0]
        assert best["accuracy"]["low"] <= best["accuracy"]["value"] <= best["accuracy"]["high"]
        assert best["curve"][-1][0] == 100
    assert "next: python train.py model=glyphnet" in capsys.readouterr().out


def test_what_the_time_does_not_allow_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no backbone could be measured.*not reached within advise.minutes=1e-06"):
        main(["advise", "advise.models=glyphnet", "advise.minutes=1e-6", "--out", str(tmp_path)])


def test_samples_of_one_group_have_no_learning_curve(tmp_path: Path) -> None:
    for index in range(240):
        path = tmp_path / "images" / f"class {index % 2}" / f"scene{index // 60}_{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 90 * (index % 2), 0)).save(path)
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.group_pattern=^[^/]+/(scene\\d)"]
    advice = headstart.advise(*data, "data.val_fraction=0.25", "data.test_fraction=0.25", "advise.models=glyphnet")
    assert advice.recommended.candidate.name == "glyphnet"
    assert advice.images == 120  # two of the four scenes
    assert [size for size, _ in advice.recommended.curve][-1] == 120
