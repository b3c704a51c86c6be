"""Sweeps through the real command: interruptions, failures, launchers and seeds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from headstart.runs.resuming import RUN_FILES
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import SMALL, TINY_RESNET, read_rows
from tests.helpers.session import Once
from tests.helpers.sweeps import QUICK, check_not_repeated, finished, rows, swept

LR, HEAD = "lr=1e-3,1e-2", "head=linear,mlp"
# Where a sweep of four jobs is killed, all of its processes at once, command after command.
KILLS = (
    ("an epoch begins", 1),  # nothing is there yet
    ("before a checkpoint", 2),  # best.ckpt is there, and last.ckpt is not
    ("after a checkpoint", 3),
    ("after the figures", 1),  # the job has finished, and nobody has recorded it
    ("before the figures", 1),
    ("after the figures", 2),
)


def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(plain_sweep: Path, tmp_path: Path) -> None:
    seen = []
    for point, count in KILLS:
        result = swept(tmp_path, LR, HEAD, *QUICK, environment=killed_at(point, count))
        assert result.returncode == -signal.SIGKILL, result.stderr
        seen.append(finished(tmp_path))
    assert [len(jobs) for jobs in seen] == [0, 0, 0, 1, 1, 3]
    result = swept(tmp_path, LR, HEAD, *QUICK)
    assert result.returncode == 0, result.stderr
    check_not_repeated([*seen, finished(tmp_path)])
    assert max(attempts for _, attempts in finished(tmp_path).values()) > 1  # resumed
    assert rows(tmp_path) == rows(plain_sweep)


# --- failures ------------------------------------------------------------------------------------------------

EXPERIMENTS = {
    "killed": "lr: 1e-3",
    "good": "lr: 1e-2",
    "better": "lr: 3e-2",
    "best": "lr: 3e-3",
    "raises": "model: {weights: gone.pth}",
    "diverges": "lr: 1e30\nhead: {dropout: 0.0}\ndefaults:\n  - override /head: mlp",
}


@pytest.fixture
def experiments(tmp_path: Path) -> str:
    """A folder of experiments for `--config-dir`: three good ones, and one for each kind of failure."""
    for name, text in EXPERIMENTS.items():
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    return f"--config-dir={tmp_path / 'conf'}"


def test_failures_are_recorded_and_the_sweep_goes_on(experiments: str, tmp_path: Path) -> None:
    """One job raises, one diverges, one is killed as the kernel does when memory runs out."""
    folder, once = tmp_path / "sweep", tmp_path / "once"
    environment = killed_at("an epoch begins", 1, who="process", once=once)
    overrides = (experiments, f"experiment={','.join(EXPERIMENTS)}", *QUICK)
    result = swept(folder, *overrides, environment=environment)
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert once.exists()
    table = {row["job"].removeprefix("experiment="): row for row in rows(folder)}
    done = list(table)[:3]
    assert done == sorted(done, key=lambda name: -float(table[name]["val/accuracy"]))
    assert {name: table[name]["failure"] for name in done} == {"good": "", "better": "", "best": ""}
    reasons = {
        "raises": "gone.pth: no such file of weights",
        "diverges": "diverged: train/loss, val/loss, test/loss is not a finite number; try a lower lr",
        "killed": "its process was killed by SIGKILL, as the system does when memory runs out",
    }
    for name, reason in reasons.items():
        assert table[name]["val/accuracy"] == "failed"
        assert table[name]["failure"].startswith(reason)
        log_file = folder / f"experiment={name}" / "train.log"
        assert f"failed: experiment={name} ({log_file}): {reason}" in output
        assert reason[:20] in log_file.read_text()
    assert "3 finished, 3 failed" in output
    # Again: finished jobs are skipped, also the one that diverged, as it would again; the others are tried again.
    before = finished(folder)
    again = swept(folder, *overrides, "sweep.allow_failures=true")
    assert again.returncode == 0
    assert "4 of 6 jobs had finished before" in again.stdout
    assert before.items() <= finished(folder).items()
    assert "4 finished, 2 failed" in again.stdout


def test_a_launcher_that_loses_a_process_loses_no_job(tmp_path: Path) -> None:
    """Joblib gives up all jobs when one of its processes dies; they resume from their last checkpoints."""
    once = tmp_path / "once"
    overrides = ("launcher=joblib", LR, "head=mlp", *QUICK, "epochs=3", "callbacks=none")
    environment = killed_at("an epoch begins", 2, who="parent", once=once)
    result = swept(tmp_path / "sweep", *overrides, environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert once.exists()
    assert "the launcher lost a process: TerminatedWorkerError" in result.stdout
    assert max(attempts for _, attempts in finished(tmp_path / "sweep").values()) == 2
    assert [row["epochs/run"] for row in rows(tmp_path / "sweep")] == ["3", "3"]


WRONG = {
    "lr=1e-3,-1": "lr=-1: expected a number above 0, or auto.",
    "lr=range(0,0)": "there is no job to run: a key has no values.",
    "lr=1e-3,1e-2 ckpt_path=last.ckpt": "ckpt_path: a sweep resumes its jobs itself. Leave it out",
    "lr=1e-3,1e-2 sweep.parallel=2": "sweep.parallel=2: one process runs one job at a time. Add launcher=joblib",
    "lr=1e-3,1e-2 sweep.sample=0": "sweep.sample=0: expected a whole number of at least 1.",
    "lr=1e-3,1e-2 sweep.nmae=x": "Could not override 'sweep.nmae'",
    "seed=1,2": "seed=1 holds files that do not belong to a job (thesis.txt). "
    "Choose another sweep.name, or move that away.",
    "sweep=optuna lr=1e-3": "sweep=optuna: there is nothing to search. Give values, such as head=linear,mlp.",
    "sweep=optuna lr=1e-3,1e-2 hydra/sweeper/sampler=grid": "leave sweep=optuna out, and -m runs every",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_overrides_stop_a_sweep_before_it_begins(overrides: str, tmp_path: Path) -> None:
    thesis = tmp_path / "seed=1" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    result = swept(tmp_path, *overrides.split(), *QUICK)
    assert result.returncode == 1
    assert WRONG[overrides] in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*/job.json"))
    assert thesis.exists()


# --- where it runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plain_sweep(made_once: Once) -> Path:
    """Four jobs, one after another."""

    def run(folder: Path) -> None:
        result = swept(folder, LR, HEAD, *QUICK, "report=auto")
        assert result.returncode == 0, result.stderr

    return made_once("plain/sweep", run)


def test_a_sweep_has_a_table_and_a_report_of_the_best(plain_sweep: Path) -> None:
    table = rows(plain_sweep)
    assert list(table[0])[:5] == ["job", "lr", "head.name", "head.hidden", "head.dropout"]
    assert len(table) == 4
    values = [float(row["val/accuracy"]) for row in table]
    assert values == sorted(values, reverse=True)
    reports = [page.parts[-3] for page in plain_sweep.glob("*/report/index.html")]
    assert reports == [table[0]["job"]]
    assert table[0]["job"] in (plain_sweep / "index.html").read_text()


# Ray takes 20 s to start its own processes.
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", pytest.param("ray", marks=pytest.mark.soak)])
def test_every_launcher_gives_the_same_metrics(launcher: str, plain_sweep: Path, tmp_path: Path) -> None:
    result = swept(tmp_path / "sweep", f"launcher={launcher}", LR, "head=mlp", *QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    expected = {row["lr"]: row for row in rows(plain_sweep) if row["head.name"] == "mlp"}
    launched = {row.pop("lr"): row for row in rows(tmp_path / "sweep") if row.pop("job")}
    assert launched.keys() == expected.keys()
    for lr, row in launched.items():
        assert row.items() <= expected[lr].items()


def test_jobs_decode_images_in_worker_processes(folders: Path, tmp_path: Path) -> None:
    overrides = ("data=imagefolder", f"data.root={folders}", *TINY_RESNET, *SMALL, "freeze=false", "epochs=1")
    result = swept(tmp_path, LR, *overrides, "data.num_workers=1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(rows(tmp_path)) == 2


def test_jobs_of_several_processes_leave_one_folder_each(tmp_path: Path) -> None:
    """DDP: Lightning starts the second process of a job by a command of its own."""
    result = swept(tmp_path / "sweep", "trainer=ddp", "trainer.accelerator=cpu", "lr=1e-3,1e-2", *QUICK[1:])
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(path.name for path in (tmp_path / "sweep").glob("[!.]*")) == ["lr=0.001", "lr=0.01", "sweep.csv"]
    for job in (tmp_path / "sweep").glob("lr=*"):
        expected = {".lock", "job.json", "train.log", *RUN_FILES} - {"csv", "lr_range.csv", "report", "check.json"}
        assert {path.name for path in job.iterdir()} == expected
        events = [path.name.split(".")[-2] for path in (job / "tensorboard").glob("events.*")]
        assert len(set(events)) == 1  # of one process


def test_parallel_jobs_compute_each_image_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HEADSTART_CACHE": str(tmp_path / "cache")}
    result = swept(tmp_path / "sweep", "launcher=joblib", "sweep.parallel=2", LR, *QUICK, environment=environment)
    assert result.returncode == 0, result.stderr
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/metrics.json")]
    images = sum(runs[0][f"data/{split}_size"] for split in ("train", "val", "test"))
    assert len(runs) == 2
    assert sum(run["features/computed"] for run in runs) == images


# --- seeds ---------------------------------------------------------------------------------------------------


def test_five_seeds_by_hand(tmp_path: Path) -> None:
    """The table against the formulas: mean, sample deviation, and Student's t with 4 degrees of freedom."""
    result = swept(tmp_path, "seed=range(5)", *QUICK)
    assert result.returncode == 0, result.stderr
    metrics = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    (row,) = read_rows(tmp_path / "seeds.csv")
    for name in ("val/accuracy", "val/loss", "test/accuracy"):
        values = [run[name] for run in metrics]
        mean = sum(values) / 5
        deviation = (sum((value - mean) ** 2 for value in values) / 4) ** 0.5
        margin = 2.776445 * deviation / 5**0.5  # the 97.5 % quantile, from a table
        expected = {"mean": mean, "sd": deviation, "low": mean - margin, "high": mean + margin}
        assert {key: float(row[f"{name} {key}"]) for key in expected} == pytest.approx(expected, rel=1e-6)
        assert f"{mean:.4f} ± {deviation:.4f} ({mean - margin:.4f} to {mean + margin:.4f})" in result.stdout
    assert row["seeds"] == "5"
