"""`headstart runs`, and TensorBoard's HPARAMS tab: runs side by side."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headstart.cli.main import main
from headstart.runs.listing import find_runs, flat
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.board import start_board
from tests.helpers.runs import read_metrics


def listed(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, str]]:
    capsys.readouterr()
    main(["runs", *map(str, words), "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_best_run_stands_first_with_what_differs(sweep: Path, capsys: Any) -> None:
    rows = listed(capsys, sweep)
    assert [row["run"] for row in rows[-1:]] == ["unfinished"]
    assert rows[-1]["val/accuracy"] == "not ended"
    assert list(rows[0])[1:] == [
        *("lr", "head.name", "head.hidden", "head.dropout"),
        *("val/accuracy", "val/loss", "test/accuracy", "epochs/run", "time/total_s"),
    ]
    accuracies = [float(row["val/accuracy"]) for row in rows[:-1]]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows[:-1]:
        metrics = read_metrics(sweep / row["run"])
        assert float(row["val/accuracy"]) == metrics["val/accuracy"]
    assert {(row["lr"], row["head.name"]) for row in rows} == {
        (lr, head) for lr in ("0.001", "0.003", "0.01") for head in ("linear", "mlp")
    }


def test_losses_are_sorted_the_other_way(sweep: Path, capsys: Any) -> None:
    losses = [float(row["test/loss"]) for row in listed(capsys, sweep, "--sort", "test/loss")[:-1]]
    assert losses == sorted(losses)


def test_the_table_for_people_is_not_cut_off(sweep: Path, capsys: Any) -> None:
    main(["runs", str(sweep)])
    out = capsys.readouterr().out
    assert "…" not in out
    assert "val/accuracy" in out
    assert "unfinished" in out


def test_what_is_not_there_is_named(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--sort val/acuracy: no run has it. Did you mean 'val/accuracy'\\? There are data"
    ):
        main(["runs", str(sweep), "--sort", "val/acuracy"])
    with pytest.raises(DataError, match="none: no such folder. Expected one with run folders below it"):
        find_runs(tmp_path / "none")
    with pytest.raises(DataError, match="no run folder below it; each has a config.yaml."):
        find_runs(tmp_path)


def test_flat_settings() -> None:
    settings = {"lr": 0.1, "head": {"name": "mlp", "hidden": None}, "trainer": {"devices": 1}, "mean": [0.5, 0.5]}
    assert dict(flat(settings)) == {"lr": 0.1, "head.name": "mlp", "head.hidden": "null", "mean": "[0.5, 0.5]"}


def post(url: str, path: str, **body: Any) -> Any:
    data, kind = json.dumps({"experimentName": "", **body}).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}data/plugin/hparams/{path}", data, kind)) as answer:
        return json.load(answer)


def test_tensorboard_has_a_row_for_every_run_of_a_sweep(sweep: Path) -> None:
    """The real TensorBoard, asked as its page asks it."""
    url = start_board(sweep)
    columns = [{"hparam": "lr"}, {"hparam": "head.hidden"}, {"metric": {"tag": "best/val/accuracy"}}]
    experiment = post(url, "experiment")
    settings = {info["name"]: info for info in experiment["hparamInfos"]}
    assert {name for name, info in settings.items() if info["differs"]} >= {"lr", "head.name"}
    assert "head.hidden" in settings  # a setting that only some runs have
    assert {"tag": "best/test/accuracy", "group": ""} in [info["name"] for info in experiment["metricInfos"]]
    groups = post(
        url, "session_groups", colParams=columns, allowedStatuses=["STATUS_SUCCESS"], startIndex=0, sliceSize=100
    )["sessionGroups"]
    by_run = {group["name"].split("/")[0]: group for group in groups}
    for name in "012345":
        metrics = read_metrics(sweep / name)
        values = {value["name"]["tag"]: value["value"] for value in by_run[name]["metricValues"]}
        assert values["best/val/accuracy"] == pytest.approx(metrics["val/accuracy"])
        assert by_run[name]["hparams"]["lr"] == pytest.approx((1e-3, 3e-3, 1e-2)[int(name) % 3])
        assert by_run[name]["hparams"].get("head.hidden") == (256 if name in "345" else None)
