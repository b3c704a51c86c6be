"""Names, digests, slots and the worker of sweeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution

from headstart.data.workers import CORES, available_cores
from headstart.runs.jobs import Job, OccupiedError, digest, find_jobs
from headstart.runs.listing import Run
from headstart.runs.resuming import clear
from headstart.sweeps.grid import draw_sample
from headstart.sweeps.job_process import run_job
from headstart.sweeps.launching import check_launcher
from headstart.sweeps.naming import MAX_BYTES, job_name, sweep_name
from headstart.sweeps.requirements import REQUIREMENTS, check_plugins
from headstart.sweeps.seeds import group_by_seed, seed_rows
from headstart.sweeps.slots import slot, slot_environment, visible_gpus
from headstart.sweeps.summary import format_failures
from headstart.sweeps.worker import DiedError, FailedError, Worker
from headstart.utils.errors import ConfigError, HeadstartError
from headstart.utils.tables import show_rows
from tests.helpers.runs import CONF, SMALL, composed
from tests.helpers.sweeps import composed_with_hydra
from tests.helpers.work import doubled, forked

# --- names ---------------------------------------------------------------------------------------------------


def test_a_job_is_named_by_its_swept_overrides() -> None:
    overrides = ["data=emergency", "lr=0.01", "head=mlp", "epochs=3"]
    for ordered in (overrides, overrides[::-1]):
        assert job_name(ordered, ["lr", "head"]) == "head=mlp,lr=0.01"
    assert job_name(["+experiment=a"], ["experiment"]) == "experiment=a"
    assert job_name(["lr=0.0012345678901234"], ["lr"]).startswith("lr=0.001235-")
    assert job_name(["model.weights='/a/b/w.pth'"], ["model.weights"]).startswith("model.weights=w.pth-")


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=6, unique=True))
def test_job_names_are_unique_and_valid_names_of_files(values: list[str]) -> None:
    names = [job_name([f"key={value}", "other=1"], ["key"]) for value in values]
    assert all(a != b for a, b in combinations(names, 2))
    for name in names:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) <= MAX_BYTES
        assert name.isprintable()


def test_a_sweep_is_named_by_its_overrides_in_any_order() -> None:
    overrides = ["lr=1e-3,1e-2", "data=emergency", "head=linear,mlp"]
    name = sweep_name("grid", overrides)
    assert name.startswith("grid-head-lr-")
    no_effect = ["launcher=joblib", "sweep.parallel=4", "report=false", "sweep.allow_failures=true"]
    assert sweep_name("grid", [*no_effect, *reversed(overrides)]) == name
    assert len({name, sweep_name("grid", [*overrides, "epochs=3"]), sweep_name("optuna", overrides)}) == 3


# --- jobs ----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_settings_that_affect_metrics() -> None:
    no_effect = ("report=false", "logger=csv", "data.num_workers=3", "trainer.enable_progress_bar=false")
    assert digest(composed(*no_effect, "sweep.parallel=9")) == digest(composed())
    overrides = ((), ("lr=2e-3",), ("seed=1",), ("head=mlp",), ("trainer.precision=64-true",))
    assert len({digest(composed(*changed)) for changed in overrides}) == 5


def test_an_unfinished_job_is_cleared_and_its_log_stays(tmp_path: Path) -> None:
    job = Job.from_config(composed(), tmp_path / "job")
    with job.lock():
        job.record_start()
        for name in ("config.yaml", "train.log", "tensorboard/events", "checkpoints/.best.ckpt.x"):
            path = job.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        clear(job.folder)
    assert sorted(path.name for path in job.folder.iterdir()) == [".lock", "job.json", "train.log"]
    assert not job.finished
    assert [other.digest for other in find_jobs(tmp_path)] == [job.digest]


def test_a_folder_with_other_files_is_refused_but_not_one_with_unfinished_files(tmp_path: Path) -> None:
    job = Job.from_config(composed(), tmp_path / "job")
    with job.lock():
        for name in (".job.json.x7f3", "train.log"):
            (job.folder / name).write_text("{")
        job.check_folder()
        (job.folder / "photos").mkdir()
        with pytest.raises(
            OccupiedError, match=r"job holds files that do not belong to a job \(photos\). Choose anoth"
        ):
            job.check_folder()


def test_a_job_with_metrics_has_finished_whatever_comes_after_them(tmp_path: Path) -> None:
    """A process that dies in the report, when metrics.json is there, has run its job."""
    job = Job.from_config(composed(), tmp_path / "job")
    job.record_start()
    job.record_end("its process was killed by SIGKILL")
    assert (job.finished, job.reason) == (False, "its process was killed by SIGKILL")
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5, "val/loss": 1.5}')
    assert (job.finished, job.reason, job.value()) == (True, None, 0.5)
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5, "val/loss": null}')
    assert job.reason == "diverged: val/loss is not a finite number; try a lower lr"
    # The best checkpoint is of use even if training has diverged since.
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5, "val/loss": 1.5, "last_epoch/val/loss": null}')
    assert (job.reason, job.value()) == (None, 0.5)


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    Job.from_config(composed("epochs=10"), tmp_path / "job").record_start()
    Job.from_config(composed("epochs=10"), tmp_path / "job").check_folder()
    with pytest.raises(OccupiedError, match=r"job holds a job with other settings \(epochs=10, here 20\). Choose an"):
        Job.from_config(composed("epochs=20"), tmp_path / "job").check_folder()


# --- a machine that jobs share -------------------------------------------------------------------------------


def test_each_of_two_jobs_has_its_gpu_and_half_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert visible_gpus() == ["4", "GPU-abc"]
    half = str(max(1, available_cores() // 2))
    assert slot_environment(0, 2, gpu=True) == {CORES: half, "CUDA_VISIBLE_DEVICES": "4"}
    assert slot_environment(1, 2, gpu=True) == {CORES: half, "CUDA_VISIBLE_DEVICES": "GPU-abc"}
    assert slot_environment(2, 3, gpu=True)["CUDA_VISIBLE_DEVICES"] == "4"  # more jobs than GPUs
    assert slot_environment(1, 2, gpu=False) == {CORES: half}
    # While this process has a slot, another process gets the other one, and a third one waits.
    code = f"""if True:
        import time
        from pathlib import Path
        from headstart.sweeps.slots import slot
        with slot(Path({str(tmp_path)!r}), first=1, slots=2) as number:
            print(number, time.time(), flush=True)
            time.sleep(1)
            print(time.time())"""
    with slot(tmp_path, first=5, slots=2) as number:
        assert number == 1
        others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        first, second = sorted((other.communicate()[0].split() for other in others), key=lambda times: times[1])
    assert first[0] == second[0] == "0"
    assert float(second[1]) >= float(first[2])  # one after the other


# --- the worker ----------------------------------------------------------------------------------------------


def ends(pid: int) -> bool:
    """Whether a process ends within a minute; it takes a moment."""
    for _ in range(600):
        time.sleep(0.1)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
    return False


def test_a_worker_lives_as_long_as_it_is_fit() -> None:
    worker = Worker()
    assert worker.call(doubled, 2) == 4
    with pytest.raises(HeadstartError, match="give another number"):
        worker.call(doubled, 0)
    with pytest.raises(FailedError, match="ValueError: negative"):
        worker.call(doubled, -1)
    assert worker.call(os.getpid) == worker.call(os.getpid) != os.getpid()
    with pytest.raises(FailedError, match="RuntimeError: too much"):  # as out of GPU memory
        worker.call(doubled, 101)
    assert not worker.alive


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_worker_has_the_environment_of_its_slot_and_may_fork() -> None:
    worker = Worker({CORES: "1"})
    assert worker.call(os.getenv, CORES) == "1"
    assert worker.call(available_cores) == 1
    assert worker.call(forked) == 0
    worker.close()


def test_how_a_worker_ended_is_described() -> None:
    worker = Worker()
    pid = worker.call(os.getpid)
    with pytest.raises(DiedError, match="its process was killed by SIGKILL, as the system does"):
        worker.call(os.kill, pid, signal.SIGKILL)
    with pytest.raises(DiedError, match="ended with exit status 3"):
        Worker().call(os._exit, 3)


WORKER = """
import os, time
from headstart.sweeps.worker import Worker
worker = Worker()
print(worker.call(os.getpid), flush=True)
worker.call(time.sleep, 60)
"""
OF_JOBLIB = """
import os, time
from headstart.data.workers import exit_with_parent
exit_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""
JOBLIB = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {OF_JOBLIB!r}])"


@pytest.mark.parametrize("code", [WORKER, JOBLIB], ids=["worker", "joblib"])
def test_a_process_ends_with_the_one_that_started_it(code: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert ends(pid)


# --- seeds ---------------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_all_but_their_seed() -> None:
    def run(seed: int, lr: float, value: float | None) -> Run:
        return Run(Path(f"{seed}-{lr}"), {"seed": seed, "lr": lr}, {} if value is None else {"val/accuracy": value})

    runs = [run(0, 0.1, 0.5), run(1, 0.1, 0.7), run(0, 0.2, 0.9), run(1, 0.2, None)]
    second, first = group_by_seed(runs, "val/accuracy")  # the best first
    assert first.settings == {"lr": 0.1}
    assert (first.mean, first.deviation) == pytest.approx((0.6, 0.141421356))
    assert second.values == (0.9,)
    assert second.deviation is second.interval is None
    assert group_by_seed(runs[::2], "val/accuracy") == []  # the same seed throughout: nothing is repeated
    # A metric that only some have, such as of a test split.
    rows = seed_rows({"val/accuracy": [first, second], "test/accuracy": [second]}, plain=False)
    assert rows[1:] == [["0.1", "2", "0.6000 ± 0.1414 (-0.6706 to 1.8706)", ""], ["0.2", "1", "0.9000", "0.9000"]]
    (_, *plain) = seed_rows({"val/accuracy": [first, second], "test/accuracy": [second]}, plain=True)
    assert [len(row) for row in plain] == [10, 10]
    assert plain[1][2:] == ["0.9", "", "", ""] * 2


def test_a_sample_is_of_the_grid_and_in_larger_ones() -> None:
    grid = [[f"lr={number}"] for number in range(50)]
    assert draw_sample(grid, None) == draw_sample(grid, 50) == draw_sample(grid, 99) == grid
    few, many = draw_sample(grid, 5), draw_sample(grid, 20)
    assert (len(few), len(many)) == (5, 20)
    assert all(job in many for job in few)
    assert few != grid[:5]


# --- ready spaces --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head_lr", "finetune", "backbones"])
def test_every_value_of_a_ready_space_fits(name: str) -> None:
    params = composed_with_hydra(f"sweep={name}").hydra.sweeper.params
    space, fixed, _ = create_params_from_overrides([f"{key}={values}" for key, values in params.items()])
    assert not fixed
    for key, values in space.items():
        bounds = values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for value in bounds:
            composed(f"sweep={name}", f"{key}={value}")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_takes_its_settings(name: str) -> None:
    """Those of SLURM, too, which is not here to run on."""
    cfg = composed_with_hydra(f"launcher={name}", "sweep.name=x")
    check_launcher(cfg)
    launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    parallel = {"joblib": "n_jobs", "submitit_slurm": "array_parallelism"}
    if name in parallel:
        assert launcher[parallel[name]] == cfg.sweep.parallel > 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plugins([*(set(REQUIREMENTS) - {"launcher=ray"}), "lr=1e-3", "launcher=default"])
    monkeypatch.setitem(REQUIREMENTS, "launcher=joblib", ("hydra_plugins.gone", "sweep"))
    monkeypatch.setitem(REQUIREMENTS, "launcher=ray", ("gone.altogether", "ray"))
    for override, extra in (("launcher=joblib", "sweep"), ("launcher=ray", "ray")):
        with pytest.raises(ConfigError, match=rf'{override} needs packages .*: pip install -e ".\[{extra}\]"'):
            check_plugins(["-m", override, "lr=1e-3"])
    paths = [*CONF.glob("sweep/*.yaml"), *CONF.glob("launcher/*.yaml")]
    files = {f"{path.parent.name}={path.stem}": path.read_text() for path in paths}
    assert set(REQUIREMENTS) == {name for name, text in files.items() if "pip install" in text or "- optuna" in text}


def test_failures_for_the_same_reason_stand_together() -> None:
    failures = {"lr=1": "diverged", "lr=2": "no data", "lr=3": "no data"}
    assert list(format_failures(failures, Path("sweep"))) == [
        "failed: lr=1 (sweep/lr=1/train.log): diverged",
        "2 failed: no data",
        "    lr=2 (sweep/lr=2/train.log)",
        "    lr=3 (sweep/lr=3/train.log)",
    ]
    many = list(format_failures({str(number): "no data" for number in range(30)}, Path("sweep")))
    assert len(many) == 27
    assert many[-1] == "    and 5 more"


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([["data.root", "[b]"], ["/x/a[/b]", "/x/[old]/y"]])
    out = capsys.readouterr().out
    assert all(name in out for name in ("[b]", "/x/a[/b]", "/x/[old]/y"))


def test_a_job_that_another_process_has_finished_is_not_run_again(tmp_path: Path) -> None:
    """Two commands may run one sweep: the second waits for the job that the first one runs."""
    config = composed(*SMALL)
    job = Job.from_config(config, tmp_path / "job")
    with job.lock():
        job.record_start()
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5}')
    hydra: Any = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(job.folder)))
    assert run_job(config, hydra) == 0.5
    assert job.attempts == 1
