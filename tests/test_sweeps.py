"""Sweeps through the real command: what survives, what is recorded, what is run again."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headstart.sweeps.jobs import WRITTEN
from tests.conftest import ROOT, SMALL, TINY_RESNET

QUICK = (*SMALL[1:], "epochs=2", "data.train_per_class=3")


def started(folder: Path, *words: str, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", "-m", *words, f"hydra.sweep.dir={folder}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **settings)


def swept(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    process = started(folder, *words)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(folder: Path) -> list[dict[str, str]]:
    """sweep.csv but for the times."""
    with (folder / "sweep.csv").open() as file:
        return [{name: cell for name, cell in row.items() if name != "time/total_s"} for row in csv.DictReader(file)]


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished job wrote its figures, and how often it was begun."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, json.loads((path.parent / "job.json").read_text())["attempts"])
        for path in folder.glob("*/metrics.json")
    }


def killed(folder: Path, words: tuple[str, ...], kills: int, longest_s: float) -> list[dict[str, tuple[int, int]]]:
    """Starts a command again and again, and kills its whole process group at random moments; what had finished then."""
    rng, seen = random.Random(0), []
    for _ in range(kills):
        process = started(folder, *words)
        try:
            process.communicate(timeout=rng.uniform(START_S, START_S + longest_s))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        seen.append(finished(folder))
    return seen


GRID = (
    "lr=3e-4,1e-3,3e-3,1e-2,3e-2,1e-1",
    "head=linear,mlp",
    *SMALL[1:],
    "epochs=150",
    "callbacks.early_stopping.patience=60",
)
START_S = 4.0  # before that, python imports
KILLS = int(os.environ.get("HEADSTART_KILLS", "6"))


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    seen = killed(tmp_path / "killed", GRID, KILLS, longest_s=8)
    result = swept(tmp_path / "killed", *GRID)
    assert result.returncode == 0, result.stderr
    assert len(finished(tmp_path / "killed")) == 12
    assert any(seen)
    for before, after in zip(seen, [*seen[1:], finished(tmp_path / "killed")], strict=True):
        assert before.items() <= after.items()  # no finished job was run, or begun, again
    assert swept(tmp_path / "undisturbed", *GRID).returncode == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    print(sum(attempts > 1 for _, attempts in finished(tmp_path / "killed").values()), "of 12 jobs were resumed")


# --- failures ------------------------------------------------------------------------------------------------

EXPERIMENTS = {
    "good": "lr: 1e-2",
    "better": "lr: 3e-2",
    "best": "lr: 3e-3",
    "raises": "model: {weights: gone.pth}",
    "diverges": "lr: 1e30\nhead: {dropout: 0.0}\ndefaults:\n  - override /head: mlp",
    "hungry": "head: {hidden: 2500000}\ndefaults:\n  - override /head: mlp",
}
LIMIT = 2.5e9  # bytes; a worker has less than 1 GB, and the hidden layer alone 4.2


@pytest.fixture
def experiments(tmp_path: Path) -> str:
    """A folder of recipes for `--config-dir`: three good ones, and one for each way to fail."""
    for name, text in EXPERIMENTS.items():
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    return f"--config-dir={tmp_path / 'conf'}"


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def processes_of(session: int, what: bytes = b"headstart.sweeps.worker") -> list[int]:
    """The processes of a command; those that do the work, unless it is others that are asked for."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session and what in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_failures_are_recorded_and_the_sweep_goes_on(experiments: str, tmp_path: Path) -> None:
    """One job raises, one diverges, one is killed when it has too much memory, as the kernel would do it."""
    folder = tmp_path / "sweep"
    log = (tmp_path / "out").open("w+")
    command = [sys.executable, "train.py", experiments, "-m", f"experiment={','.join(EXPERIMENTS)}", *QUICK]
    process = subprocess.Popen(
        [*command, f"hydra.sweep.dir={folder}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )
    while process.poll() is None:
        for pid in processes_of(process.pid):
            if resident(pid) > LIMIT:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    log.seek(0)
    told = log.read()
    assert process.returncode == 1, told
    table = {row["job"].removeprefix("experiment="): row for row in rows(folder)}
    assert list(table)[:3] == sorted(list(table)[:3], key=lambda name: -float(table[name]["val/accuracy"]))
    assert set(list(table)[:3]) == {"good", "better", "best"}
    assert [table[name]["failure"] for name in ("good", "better", "best")] == ["", "", ""]
    reasons = {
        "raises": "gone.pth: no such file of weights",
        "diverges": "diverged: train/loss, val/loss, test/loss is not a finite number; try a lower lr",
        "hungry": "its process was killed by SIGKILL, as the system does to what takes too much memory",
    }
    for name, reason in reasons.items():
        assert table[name]["val/accuracy"] == "failed"
        assert table[name]["failure"].startswith(reason)
        log_file = folder / f"experiment={name}" / "train.log"
        assert f"failed: experiment={name} ({log_file}): {reason}" in told
        assert reason[:20] in log_file.read_text()
    assert "3 finished, 3 failed" in told
    # Again: what had finished is left alone, also what diverged, which it would do again; the others are tried again.
    before = finished(folder)
    names = ",".join(name for name in EXPERIMENTS if name != "hungry")  # which would take as long again
    again = swept(folder, experiments, f"experiment={names}", *QUICK, "sweep.allow_failures=true")
    assert again.returncode == 0
    assert "4 of 5 jobs had finished before" in again.stdout
    assert finished(folder) == before
    assert "3 finished, 3 failed" in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_a_launcher_that_loses_a_process_loses_no_job(tmp_path: Path) -> None:
    """Joblib gives all jobs up when one of its processes dies; they go on from their last checkpoints."""
    words = ("launcher=joblib", "lr=1e-3,1e-2,3e-2", "head=mlp", "epochs=100", "callbacks=none", *SMALL[1:])
    process = started(tmp_path, *words)
    while len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.kill(processes_of(process.pid, b"popen_loky")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert "the launcher lost a process: TerminatedWorkerError" in out
    assert sorted(attempts for _, attempts in finished(tmp_path).values()) == [1, 2, 2]
    assert {row["epochs/run"] for row in rows(tmp_path)} == {"100"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lr=1e-3,-1",), "lr=-1: expected a number above 0, or auto."),
        (("lr=range(0,0)",), "there is no job to run: a key has no values."),
        (("lr=1e-3,1e-2", "ckpt_path=last.ckpt"), "ckpt_path: a sweep resumes its jobs itself. Leave it out"),
        (
            ("lr=1e-3,1e-2", "sweep.parallel=2"),
            "sweep.parallel=2: one process runs one job at a time. Add launcher=joblib",
        ),
        (("lr=1e-3,1e-2", "sweep.sample=0"), "sweep.sample=0: expected a whole number of at least 1."),
        (("lr=1e-3,1e-2", "sweep.nmae=x"), "Could not override 'sweep.nmae'"),
        (("seed=1,2",), "seed=1 holds what is not a job's (thesis.txt). Choose another sweep.name, or move that away."),
        (
            ("sweep=optuna", "lr=1e-3"),
            "sweep=optuna: there is nothing to search. Give values, such as head=linear,mlp.",
        ),
        (("sweep=optuna", "lr=1e-3,1e-2", "hydra/sweeper/sampler=grid"), "leave sweep=optuna out, and -m runs every"),
    ],
)
def test_wrong_words_stop_a_sweep_before_it_begins(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    thesis = tmp_path / "seed=1" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    result = swept(tmp_path, *words, *QUICK)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*/job.json"))
    assert thesis.exists()


# --- where it runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six jobs, one after another."""
    folder = tmp_path_factory.mktemp("plain")
    result = swept(folder, "lr=1e-3,1e-2,3e-2", "head=linear,mlp", *QUICK[:-2], "report=auto", *QUICK[-2:])
    assert result.returncode == 0, result.stderr
    return folder


def test_a_sweep_has_a_table_and_a_report_of_the_best(plain_sweep: Path) -> None:
    table = rows(plain_sweep)
    assert list(table[0])[:5] == ["job", "lr", "head.name", "head.hidden", "head.dropout"]
    assert len(table) == 6
    values = [float(row["val/accuracy"]) for row in table]
    assert values == sorted(values, reverse=True)
    reports = [page.parts[-3] for page in plain_sweep.glob("*/report/index.html")]
    assert reports == [table[0]["job"]]
    assert table[0]["job"] in (plain_sweep / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_gives_the_same_table(launcher: str, plain_sweep: Path, tmp_path: Path) -> None:
    words = (f"launcher={launcher}", "lr=1e-3,1e-2,3e-2", "head=linear,mlp", *QUICK)
    result = swept(tmp_path / "sweep", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows(tmp_path / "sweep") == rows(plain_sweep)


def test_jobs_decode_images_in_processes_of_their_own(folders: Path, tmp_path: Path) -> None:
    words = ("data=imagefolder", f"data.root={folders}", *TINY_RESNET, "model.weights=null", "freeze=false", "epochs=1")
    result = swept(tmp_path, "lr=1e-3,1e-2", *words, *SMALL[1:3], "data.num_workers=1", "report=false")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(rows(tmp_path)) == 2


@pytest.mark.slow
def test_jobs_of_several_processes_leave_one_folder_each(tmp_path: Path) -> None:
    """DDP: Lightning starts the second process of a job by a command of its own."""
    result = swept(tmp_path / "sweep", "trainer=ddp", "trainer.accelerator=cpu", "lr=1e-3,1e-2", *QUICK[1:])
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(path.name for path in (tmp_path / "sweep").glob("[!.]*")) == ["lr=0.001", "lr=0.01", "sweep.csv"]
    for job in (tmp_path / "sweep").glob("lr=*"):
        left = {path.name for path in job.iterdir()}
        expected = {".lock", "job.json", "train.log", *WRITTEN} - {"csv", "lr_range.csv", "report"}
        assert left == expected
        events = [path.name.split(".")[-2] for path in (job / "tensorboard").glob("events.*")]
        assert len(set(events)) == 1  # of one process


@pytest.mark.slow
def test_parallel_jobs_compute_each_image_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HEADSTART_CACHE": str(tmp_path / "cache")}
    process = started(tmp_path / "sweep", "launcher=joblib", "lr=1e-3,1e-2,3e-2,1e-1", *QUICK, env=environment)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/metrics.json")]
    images = sum(runs[0][f"data/{split}_size"] for split in ("train", "val", "test"))
    assert len(runs) == 4
    assert sum(run["features/computed"] for run in runs) == images


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_fifty_jobs_are_one_process_that_does_not_grow(tmp_path: Path) -> None:
    process = started(tmp_path, "seed=range(50)", *QUICK[:-2], "epochs=1", "data.train_per_class=3")
    sizes: dict[int, list[tuple[int, int]]] = {}
    while process.poll() is None:
        done = len(list(tmp_path.glob("*/metrics.json")))
        for pid in processes_of(process.pid):
            sizes.setdefault(pid, []).append((done, resident(pid)))
        time.sleep(0.1)
    assert process.returncode == 0
    (points,) = (found for found in sizes.values() if len(found) > 5)  # one for all; others are about to become git
    early = max(size for done, size in points if 5 <= done < 15)
    late = max(size for done, size in points if done >= 40)
    assert late - early < 20e6, (early, late)


# --- seeds ---------------------------------------------------------------------------------------------------


def test_twenty_seeds_by_hand(tmp_path: Path) -> None:
    """The table against the formulas: mean, sample deviation, and Student's t with 19 degrees of freedom."""
    result = swept(tmp_path, "seed=range(20)", *QUICK)
    assert result.returncode == 0, result.stderr
    metrics = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    (row,) = csv.DictReader((tmp_path / "seeds.csv").open())
    for name in ("val/accuracy", "val/loss", "test/accuracy"):
        values = [run[name] for run in metrics]
        mean = sum(values) / 20
        deviation = (sum((value - mean) ** 2 for value in values) / 19) ** 0.5
        margin = 2.093024 * deviation / 20**0.5  # the 97.5 % quantile, from a table
        expected = {"mean": mean, "sd": deviation, "low": mean - margin, "high": mean + margin}
        for figure, value in expected.items():
            assert float(row[f"{name} {figure}"]) == pytest.approx(value, rel=1e-6), (name, figure)
        assert f"{mean:.4f} ± {deviation:.4f} ({mean - margin:.4f} to {mean + margin:.4f})" in result.stdout
    assert row["seeds"] == "20"
