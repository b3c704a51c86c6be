"""The `headstart` command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cache.disk import sets_folder
from headstart.cli.main import main
from headstart.cli.runs import compact_rows
from tests.helpers.store import ABOUT, fill

SET = "0123456789abcdef" * 2


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


def test_settings_of_many_kinds_of_runs_are_in_one_column() -> None:
    header = ["run", "lr", "head.name", "head.hidden", "val/accuracy", "time/total_s"]
    runs = [["linear", ""], ["linear", ""], ["linear", ""], ["mlp", "256"], ["mlp", "256"], ["mlp", "9"]]
    rows = [[f"{index}", f"{index // 5}", *run, "0.9", "1"] for index, run in enumerate(runs)]
    shown, common = compact_rows([header, *rows], 3, width=80)
    assert common == "lr=0 head.name=linear"
    assert shown[0] == ["run", "settings", "val/accuracy", "time/total_s"]
    texts = ["", "", "", "head.name=mlp", "head.name=mlp", "lr=1 head.name=mlp head.hidden=9"]
    assert shown[1:] == [[row[0], text, "0.9", "1"] for row, text in zip(rows, texts, strict=True)]
    narrow, _ = compact_rows([header, *rows], 3, width=20)
    assert narrow[0] == ["run", "settings", "val/accuracy"]
    assert narrow[-1] == ["5", "lr=1 head.name=mlp head.hidden=9", "0.9"]
    rows[-1][1] = "10"
    wrapped, _ = compact_rows([header, *rows], 3, width=20)
    assert wrapped[-2:] == [["5", "lr=10 head.name=mlp", "0.9"], ["", "head.hidden=9", ""]]
