"""Unknown and renamed keys: the error message names the right one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from headstart.config import schema
from headstart.config.check import VARIANTS, check, to_yaml
from headstart.config.compose import evaluation_config, list_names, quote_patterns
from headstart.config.keys import RENAMED, check_keys
from headstart.utils.errors import ConfigError
from tests.helpers.commands import command
from tests.helpers.runs import composed


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old: str) -> None:
    message = f"{old} is called {RENAMED[old]} now. Write {RENAMED[old]} in place of it."
    with pytest.raises(ConfigError, match=message):
        check_keys(["lr=1e-3", f"{old}=0.5"])
    with pytest.raises(ConfigError, match=message):  # as `headstart look` and `headstart evaluate` compose theirs
        evaluation_config(None, [f"{old}=0.5"])


def test_an_unknown_key_gets_a_suggestion() -> None:
    others = ["hydra", "experiment"]
    check_keys(["-m", "--config-dir", "x", "+experiment=x", "hydra/launcher=x", "hydra.run.dir=x", "lr=1"], others)
    for override in ("epoch=5", "+epoch=5", "epoch/x=5"):
        with pytest.raises(ConfigError, match="unknown key 'epoch'. Did you mean 'epochs'. The keys are freeze, epoc"):
            check_keys(["lr=1e-3", override], others)


def test_the_command_refuses_it_before_anything_is_imported() -> None:
    result = command("finetune=gradual", "finetune.thawed_by=0.5")
    assert result.returncode == 1
    assert "finetune.thawed_by is called finetune.unfrozen_by now" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_with_an_old_name_is_told_the_new_one() -> None:
    former = OmegaConf.structured(composed("finetune=gradual"))
    values: Any = OmegaConf.to_container(former)
    values["finetune"]["thawed_by"] = values["finetune"].pop("unfrozen_by")  # as a run's config.yaml had it
    with pytest.raises(ConfigError, match="finetune.thawed_by is called finetune.unfrozen_by now"):
        check(OmegaConf.create(values))


def test_every_new_name_is_a_key() -> None:
    kinds = [(group, kind) for group, (_, choices) in VARIANTS.items() for kind in choices.values()]
    kinds += [("finetune", schema.Finetune), ("loss", schema.Loss)]
    assert set(RENAMED.values()) <= {f"{group}.{field.name}" for group, kind in kinds for field in fields(kind)}


@pytest.mark.parametrize(
    "pattern", [r"(scan\d+)_", r"scan\d+", r"a'(b)", r'"(a', r"(x)\\", r"(a|b{2})[^/.\- ]+$", r"a,b(", r"\(a\)", "null"]
)
def test_a_regular_expression_needs_no_quotes_of_its_own(pattern: str) -> None:
    (override,) = quote_patterns([f"data.group_pattern={pattern}"])
    parsed = OverridesParser.create().parse_override(override).value()
    assert parsed == (None if pattern == "null" else pattern)
    assert quote_patterns([override, "lr=(1)"]) == [override, "lr=(1)"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("resnet18", ["resnet18"]),
        ("a, timm/b.c_d@null,", ["a", "timm/b.c_d@null"]),
        ("a@../my file=(1).pth,b", ["a@../my file=(1).pth", "b"]),
        ("[a,b]", ["a", "b"]),
        ("", []),
    ],
)
def test_names_of_backbones_need_no_brackets(value: str, names: list[str]) -> None:
    (override,) = list_names([f"advise.models={value}"])
    parsed: Any = OverridesParser.create().parse_override(override).value()
    assert list(map(str, parsed)) == names
    assert list_names([override, "lr=1,2"]) == [override, "lr=1,2"]


def test_a_run_leaves_out_what_belongs_to_other_commands() -> None:
    text = to_yaml(composed("advise.minutes=9"))
    assert "\nsweep:" not in text
    assert "\nadvise:" not in text
