"""The report of a sweep, of folders as jobs leave them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from headstart.runs.listing import Run
from headstart.sweeps.charts import by_setting
from headstart.sweeps.report import chart_functions, charted_settings, report_sweep, suggested_commands
from headstart.sweeps.results import Sweep

ACCURACY, LOSS = "val/accuracy", "val/loss"


def job(
    folder: Path, name: str, value: float | None, *, monitor: str = ACCURACY, metrics: Any = None, **record: Any
) -> Path:
    """Writes a job's folder with `settings`, `reason` and `started`; with a value it has finished and has a report."""
    path = folder / name
    (path / "report").mkdir(parents=True)
    (path / "job.json").write_text(json.dumps({"digest": name, "monitor": monitor, "started": 0.0, **record}))
    if value is not None:
        metrics = {monitor: value, "epochs/run": 2, "time/total_s": 1.25, **(metrics or {})}
        (path / "metrics.json").write_text(json.dumps(metrics))
        (path / "report" / "index.html").write_text("the job's report")
    return path


def sweep_of(folder: Path, **lost: str) -> Sweep:
    return Sweep.read(folder, ACCURACY, lost)


def page_of(folder: Path, importance: dict[str, float] | None = None, **lost: str) -> str:
    """The sweep's page, without what HTML escapes and the charts."""
    lines = report_sweep(sweep_of(folder, **lost), importance or {})
    assert lines[-1] == f"report of the sweep: {folder / 'index.html'}"
    return (folder / "index.html").read_text(errors="surrogateescape")


def text_of(page: str) -> str:
    """The visible text, in one line."""
    without = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", without)).split())


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of a section's table."""
    table = page.partition(f'id="{section}"')[2].partition("<table>")[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL) for row in table.split("<tr>")[1:]]
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in rows]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A sweep of a rate and a head, of which one job failed and one has not ended."""
    heads: dict[str, dict[str, Any]] = {"linear": {}, "mlp": {"head.hidden": 256}}
    values = {(0.001, "linear"): 0.75, (0.001, "mlp"): 0.875, (0.1, "linear"): 0.9375, (0.1, "mlp"): None}
    for (lr, head), value in values.items():
        settings = {"lr": lr, "epochs": 2, "head.name": head, **heads[head]}
        reason = None if value else "diverged: <i>val/loss</i> is not a finite number"
        metrics = {"test/accuracy": 0.5 + lr}
        job(tmp_path, f"lr={lr},head={head}", value, settings=settings, reason=reason, metrics=metrics)
    (tmp_path / "lr=0.1,head=mlp" / "train.log").write_text("".join(f"line {number} <i>\n" for number in range(100)))
    job(tmp_path, "lr=9.0,head=linear", None, settings={"lr": 9.0, "epochs": 2, "head.name": "linear"})
    return tmp_path


# --- contents --------------------------------------------------------------------------------------------------------


def test_the_best_job_and_what_distinguishes_it(grid: Path) -> None:
    page = page_of(grid)
    text = text_of(page)
    assert "5 jobs over lr, head.name" in text
    assert "93.75% val/accuracy of the best job: lr=0.1 head.name=linear its report" in text
    assert "3 finished, 1 failed , 1 unfinished." in text
    assert "test/accuracy 60.00%" in text
    assert 'href="lr%3D0.1%2Chead%3Dlinear/report/index.html"' in page
    assert (grid / "lr=0.1,head=linear" / "report" / "index.html").exists()
    assert "epochs=" not in text  # the same in all jobs
    assert "head.hidden" not in text  # it comes with the head
    assert "Over seeds" not in text


def test_all_jobs_are_in_the_table_the_best_first_and_the_failed_last(grid: Path) -> None:
    header, *rows = rows_of(page_of(grid), "jobs")
    assert header == ["job", "lr", "head.name", "val/accuracy", "test/accuracy"]
    assert [row[1:4] for row in rows] == [
        ["0.1", "linear", "93.75%"],
        ["0.001", "mlp", "87.50%"],
        ["0.001", "linear", "75.00%"],
        ["9", "linear", "not ended"],
        ["0.1", "mlp", "failed: diverged: <i>val/loss</i> is not a finite number"],
    ]


def test_why_jobs_failed_and_the_end_of_their_logs(grid: Path) -> None:
    page = page_of(grid)
    text = text_of(page.partition('id="failed"')[2])
    assert "lr=0.1,head=mlp diverged: <i>val/loss</i> is not" in text
    assert str(grid / "lr=0.1,head=mlp" / "train.log") in text
    assert "line 84 <i>" not in text
    assert "the end of this log line 85 <i> line 86 <i>" in text
    assert text.index("line 99 <i>") < text.index("What next")


def test_a_job_whose_process_was_lost_has_failed(tmp_path: Path) -> None:
    job(tmp_path, "a", 0.5, settings={"lr": 0.1})
    job(tmp_path, "b", None, settings={"lr": 0.2})
    text = text_of(page_of(tmp_path, b="the process was killed", c="it never began"))
    assert "1 finished, 2 failed ." in text
    assert "unfinished" not in text
    assert "c it never began" in text


def test_of_a_loss_the_smallest_is_the_best(tmp_path: Path) -> None:
    for lr, value in ((0.1, 0.5), (0.2, 0.25), (0.3, 4e30)):
        job(tmp_path, f"lr={lr}", value, monitor=LOSS, settings={"lr": lr}, metrics={ACCURACY: 0.1})
    page = page_of(tmp_path)
    assert "0.25 val/loss of the best job: lr=0.2" in text_of(page)
    assert [row[1:3] for row in rows_of(page, "jobs")[1:]] == [["0.2", "0.25"], ["0.1", "0.5"], ["0.3", "4e+30"]]


def test_seeds_are_averaged(tmp_path: Path) -> None:
    for seed in range(3):
        for lr, value in ((0.1, 0.70 + 0.1 * seed), (0.2, 0.84 + 0.01 * seed)):
            settings = {"lr": lr, "seed": seed}
            job(tmp_path, f"lr={lr},seed={seed}", value, settings=settings, metrics={"test/accuracy": value - 0.5})
    page = page_of(tmp_path)
    assert "90.00% val/accuracy of the best job: lr=0.1 seed=2" in text_of(page)  # a lucky seed
    assert "Over seeds, the best is 85.00% ± 1.00%: lr=0.2" in text_of(page)
    header, *rows = rows_of(page, "seeds")
    assert header == ["lr", "seeds", "val/accuracy", "95 % interval", "test/accuracy"]
    # 4.303 is Student's t of two degrees of freedom: 0.85 ± 4.303 · 0.01 / √3.
    assert rows[0] == ["0.2", "3", "85.00% ± 1.00%", "82.52% to 87.48%", "35.00% ± 1.00%"]
    assert rows[1][:3] == ["0.1", "3", "80.00% ± 10.00%"]
    assert page.count("<svg") == 2  # seeds, and lr: a chart by seed would say nothing


def test_only_seeds_differ(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, f"seed={seed}", 0.5 + seed / 4, settings={"seed": seed})
    assert rows_of(page_of(tmp_path), "seeds")[1][:2] == ["2", "62.50% ± 17.68%"]


def test_a_single_job_is_a_sweep_too(tmp_path: Path) -> None:
    job(tmp_path, "job", 0.5, settings={"lr": 0.1})
    page = page_of(tmp_path)
    assert "1 job 50.00% val/accuracy of the best job" in text_of(page)
    assert "<svg" not in page
    assert "headstart report" not in page  # nothing to compare it with


# --- untrusted text and failures -------------------------------------------------------------------------------------


def test_names_and_values_are_text(tmp_path: Path) -> None:
    """A setting, a reason or a log must not be able to run something in the reader's browser."""
    for index, value in enumerate(("<b>x</b>", "'\"><script>x</script>", "$1 & $2 -->" + "long " * 60)):
        job(tmp_path, f"a:{index}%#?", 0.5 + index / 10, settings={"<b>k</b>": value})
        broken = job(tmp_path, f"<b>{index}", None, settings={"<b>k</b>": value}, reason="<b>r</b>" * 50)
        (broken / "train.log").write_bytes(b"<b>\xff\n")
    page = page_of(tmp_path, {"<b>k</b>": 1.0})
    for tag in ("<b>x", "<b>k", "<b>r", "<b>0", "<b>\ufffd", "<script"):
        assert tag not in page
    assert "<b>k</b>=$1 & $2 -->long long" in text_of(page)
    assert 'href="a%3A2%25%23%3F/report/index.html"' in page
    loaded = [link for link in re.findall(r"""(?:src|href)="([^"]*)""", page) if not link.startswith(("#", "data:"))]
    assert all((tmp_path / re.sub("%(..)", lambda code: chr(int(code[1], 16)), link)).exists() for link in loaded)


def test_a_chart_that_cannot_be_drawn_is_left_out(grid: Path, caplog: Any) -> None:
    page = page_of(grid, {"lr": float("nan")})
    assert "the chart importance cannot be shown" in caplog.text
    assert "The search" in page  # the history is there
    assert "93.75%" in page


def test_the_best_run_has_a_report_that_is_not_older(reported: Path, tmp_path: Path) -> None:
    best = job(tmp_path, "best", 0.5, settings={"lr": 0.1})
    (best / "job.json").replace(tmp_path / "job.json")
    shutil.rmtree(best)
    shutil.copytree(reported, best)
    (tmp_path / "job.json").replace(best / "job.json")
    page = best / "report" / "index.html"
    page.write_text("made before")
    assert report_sweep(sweep_of(tmp_path), {})[0] == f"report of the best run: {page}"
    assert page.read_text() == "made before"
    os.utime(best / "metrics.json", (4e9, 4e9))
    report_sweep(sweep_of(tmp_path), {})
    assert "Calibration" in page.read_text()


def test_without_a_report_of_the_best_run_there_is_one_of_the_sweep(grid: Path, caplog: Any) -> None:
    shutil.rmtree(grid / "lr=0.1,head=linear" / "report")
    with caplog.at_level(logging.WARNING):
        lines = report_sweep(sweep_of(grid), {})
    assert lines == [f"report of the sweep: {grid / 'index.html'}"]
    assert "there is no report of the best run: " in caplog.text
    assert 'href="lr%3D0.1%2Chead%3Dlinear/"' in (grid / "index.html").read_text()


# --- charts --------------------------------------------------------------------------------------------------


def runs(metric: str, *pairs: tuple[Any, float]) -> list[Run]:
    return [Run(Path(str(index)), {"it": level}, {metric: value}) for index, (level, value) in enumerate(pairs)]


def dots(figure: Any) -> list[tuple[float, float]]:
    """The positions of the jobs in a chart."""
    return [(float(x), float(y)) for x, y in figure.axes[0].collections[0].get_offsets()]


def test_a_setting_of_numbers_has_an_axis() -> None:
    few = runs(ACCURACY, (0.1, 0.9), (0.001, 0.5), (0.001, 0.7))
    chart = by_setting(few, [], "it", ACCURACY)
    assert dots(chart) == [(0.1, 0.9), (0.001, 0.5), (0.001, 0.7)]
    assert chart.axes[0].get_xscale() == "log"
    assert by_setting(few[:1] + runs(ACCURACY, (0.01, 0.5)), [], "it", ACCURACY).axes[0].get_xscale() == "linear"
    assert by_setting(runs(ACCURACY, (0, 0.5), (64, 0.4)), [], "it", ACCURACY).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("values", [("adam", "sgd"), (True, False), ("null", 10)])
def test_any_other_setting_has_rows_the_best_on_top(values: tuple[Any, Any]) -> None:
    chart = by_setting(runs(ACCURACY, (values[0], 0.9), (values[1], 0.5), (values[0], 0.4)), [], "it", ACCURACY)
    assert dots(chart) == [(0.9, 0.0), (0.5, -1.0), (0.4, 0.0)]
    assert [label.get_text() for label in chart.axes[0].get_yticklabels()] == [str(value) for value in values]


def test_jobs_without_the_setting_are_left_out_and_failed_ones_are_crosses() -> None:
    without = Run(Path("without"), {}, {ACCURACY: 0.95})
    failed = Run(Path("failed"), {"it": 3}, {})
    chart = by_setting([without, *runs(ACCURACY, (1, 0.9), (2, 0.5))], [failed, Run(Path("x"), {}, {})], "it", ACCURACY)
    assert dots(chart) == [(1.0, 0.9), (2.0, 0.5)]
    assert [3.0] in [points.get_offsets()[:, 0].tolist() for points in chart.axes[0].collections]
    assert chart.axes[0].get_xlim()[1] > 3


def test_a_loss_that_all_but_diverged_hides_no_other() -> None:
    chart = by_setting(runs(LOSS, (1, 0.25), (2, 0.5), (3, 4e30)), [], "it", LOSS)
    assert max(value for _, value in dots(chart)) == 50  # a hundred medians
    assert chart.axes[0].get_yscale() == "log"


def test_an_accuracy_has_no_room_above_all() -> None:
    for metric in (ACCURACY, LOSS):
        chart = by_setting(runs(metric, (1, 1.0), (2, 1.0)), [], "it", metric)
        assert (chart.axes[0].get_ylim()[1] < 1.01) == (metric == ACCURACY)


def test_a_search_is_shown_in_the_order_of_the_start_with_the_best_so_far(tmp_path: Path) -> None:
    for name, value, started in (("a", 0.25, 4.0), ("b", 0.5, 1.0), ("c", 0.75, 2.0), ("failed", None, 3.0)):
        job(tmp_path, name, value, monitor=LOSS, settings={"it": name}, started=started, reason="it raised")
    chart = chart_functions(sweep_of(tmp_path), {"it": 1.0})["history"]()
    assert dots(chart) == [(1.0, 0.5), (2.0, 0.75), (4.0, 0.25)]
    assert chart.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.5, 0.25, 0.25]


def test_the_most_important_settings_have_charts(tmp_path: Path) -> None:
    for index in range(3):
        settings = {f"s{number}": index for number in range(20)} | {"head.name": "ab"[index % 2]}
        job(tmp_path, str(index), 0.5, settings=settings, started=-index)  # all are as good
    importance = {"head": 0.5, "+s7": 0.25}
    page = page_of(tmp_path, importance)
    assert charted_settings(sweep_of(tmp_path), importance)[:3] == ["head.name", "s7", "s0"]
    assert page.count("<svg") == 12 + 2  # with the history and the importance
    assert "9 more differ." in text_of(page)
    assert "The search" not in page_of(tmp_path)  # of a grid


def test_many_jobs(tmp_path: Path) -> None:
    for index in range(200):
        settings = {"lr": 1e-4 * 1.03**index, "path": f"/data/{index}/" + "long" * 40, "seed": index % 2}
        job(tmp_path, f"{index:03}", (index + 1) / 250, settings=settings, started=index)
    page = page_of(tmp_path, {"lr": 0.7, "path": 0.3})
    assert len(rows_of(page, "jobs")) == 201
    assert len(page) < 1_000_000


def test_a_metric_that_is_null_is_not_a_value(tmp_path: Path) -> None:
    """metrics.json has null for it."""
    for name, value in (("good", 0.5), ("nan", None), ("worse", 0.25)):
        job(tmp_path, name, 0.0, settings={"it": name}, metrics={ACCURACY: value, "test/accuracy": None})
    assert [run.folder.name for run in sweep_of(tmp_path).done] == ["good", "worse"]
    rows = rows_of(page_of(tmp_path), "jobs")
    assert [row[1:3] for row in rows[1:]] == [
        ["good", "50.00%"],
        ["worse", "25.00%"],
        ["nan", "failed: diverged: val/accuracy is not a finite number; try a lower lr"],
    ]


def test_commands_are_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my sweep"
    for name in ("a", "b"):
        job(folder, name, 0.5, settings={"it": name})
    shown = suggested_commands(sweep_of(folder)).values()
    assert f"python train.py '--config-path={folder / 'a'}' --config-name=config" in shown
    assert f"headstart report '{folder / 'a'}' '{folder / 'b'}'" in shown
