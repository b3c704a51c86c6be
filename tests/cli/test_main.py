"""The `headstart` command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cache.disk import sets_folder
from headstart.cli.main import main
from headstart.cli.runs import fit_columns
from tests.helpers.store import ABOUT, fill

SET = "0123456789abcdef" * 2


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    return tmp_path


def test_the_cache_is_listed_and_cleared(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(sets_folder(own_cache) / SET, range(20))
    main(["cache"])
    listed = capsys.readouterr().out
    assert ABOUT["model"]["name"] in listed
    assert "20 rows, 1.4 kB" in listed
    assert str(own_cache) in listed
    main(["cache", "clear"])
    assert capsys.readouterr().out == f"freed 1.4 kB in {own_cache}\n"
    main(["cache"])
    assert capsys.readouterr().out == f"0 rows, 0 bytes in {own_cache}\n"


def test_a_damaged_description_does_not_hide_a_set(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(sets_folder(own_cache) / SET, range(20))
    (sets_folder(own_cache) / SET / "about.json").write_text("{")
    main(["cache"])
    assert f"unknown ({SET})" in capsys.readouterr().out


@pytest.mark.usefixtures("own_cache")
def test_the_command_needs_no_torch() -> None:
    code = "import sys; from headstart.cli.main import main; main(['cache']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_do_not_fit_on_the_terminal_are_hidden_the_least_telling_first() -> None:
    rows = [["run", "lr", "seed", "freeze", "head", "val/accuracy"]]
    rows += [[f"{index}", f"{index / 1000}", f"{index}", "true", "mlp" * (index == 0), "0.9"] for index in range(9)]
    assert fit_columns(rows, 4, width=200) == (rows, [])
    narrow, hidden = fit_columns(rows, 4, width=40)
    assert hidden == ["freeze"]
    assert narrow[:2] == [["run", "lr", "seed", "head", "val/accuracy"], ["0", "0.0", "0", "mlp", "0.9"]]
    assert fit_columns(rows, 4, width=1)[1] == ["freeze"]  # three settings are always shown
