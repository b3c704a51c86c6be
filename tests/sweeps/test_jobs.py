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
from hydra import compose, initialize_config_dir
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution

from headstart.data.workers import CORES, available_cores
from headstart.runs.listing import Run
from headstart.sweeps.grid import draw_sample
from headstart.sweeps.job_process import run_job
from headstart.sweeps.jobs import Job, OccupiedError, digest, find_jobs
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
from tests.helpers.work import doubled, forked

# --- names ---------------------------------------------------------------------------------------------------


def test_a_job_is_named_by_what_distinguishes_it() -> None:
    words = ["data=emergency", "lr=0.01", "head=mlp", "epochs=3"]
    assert job_name(words, ["lr", "head"]) == "head=mlp,lr=0.01"
    assert job_name(words[::-1], ["lr", "head"]) == "head=mlp,lr=0.01"
    assert job_name(["+experiment=a"], ["experiment"]) == "experiment=a"
    shortened = job_name(["lr=0.0012345678901234"], ["lr"])
    assert shortened.startswith("lr=0.001235-")
    path = job_name(["model.weights='/a/b/w.pth'"], ["model.weights"])
    assert path.startswith("model.weights=w.pth-")


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=6, unique=True))
def test_no_two_jobs_share_a_name_and_every_name_is_a_file_s(values: list[str]) -> None:
    names = [job_name([f"key={value}", "other=1"], ["key"]) for value in values]
    assert all(a != b for a, b in combinations(names, 2))
    for name in names:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) <= MAX_BYTES
        assert name.isprintable()


def test_a_sweep_is_named_by_its_words_in_any_order() -> None:
    words = ["lr=1e-3,1e-2", "data=emergency", "head=linear,mlp"]
    name = sweep_name("grid", words)
    assert name.startswith("grid-head-lr-")
    elsewhere = ["launcher=joblib", "sweep.parallel=4", "report=false", "sweep.allow_failures=true"]
    assert sweep_name("grid", [*elsewhere, *reversed(words)]) == name
    assert sweep_name("grid", [*words, "epochs=3"]) != name
    assert sweep_name("optuna", words) != name


# --- jobs ----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_figures_depend_on() -> None:
    one = digest(composed())
    same = ("report=false", "logger=csv", "data.num_workers=3", "trainer.enable_progress_bar=false", "sweep.parallel=9")
    assert digest(composed(*same)) == one
    others = [digest(composed(word)) for word in ("lr=2e-3", "seed=1", "head=mlp", "trainer.precision=64-true")]
    assert len({one, *others}) == 5


def test_an_unfinished_job_is_cleared_and_its_log_stays(tmp_path: Path) -> None:
    job = Job.from_config(composed(), tmp_path / "job")
    with job.lock():
        job.record_start()
        for name in ("config.yaml", "train.log", "tensorboard/events", "checkpoints/.best.ckpt.x"):
            path = job.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        job.clear()
    assert sorted(path.name for path in job.folder.iterdir()) == [".lock", "job.json", "train.log"]
    assert not job.finished
    assert [found.digest for found in find_jobs(tmp_path)] == [job.digest]


def test_what_a_job_left_half_written_is_no_other_s(tmp_path: Path) -> None:
    job = Job.from_config(composed(), tmp_path / "job")
    with job.lock():
        for name in (".job.json.x7f3", "train.log"):
            (job.folder / name).write_text("{")
        job.check_folder()
        (job.folder / "photos").mkdir()
        with pytest.raises(
            OccupiedError, match=r"job holds files that do not belong to a job \(photos\). Choose another sweep.name"
        ):
            job.check_folder()


def test_figures_count_whatever_comes_after_them(tmp_path: Path) -> None:
    """A process that dies in the report, when metrics.json is there, has run its job."""
    job = Job.from_config(composed(), tmp_path / "job")
    job.record_start()
    job.record_end("its process was killed by SIGKILL")
    assert (job.finished, job.reason) == (False, "its process was killed by SIGKILL")
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5, "val/loss": 1.5}')
    assert (job.finished, job.reason, job.value()) == (True, None, 0.5)
    (job.folder / "metrics.json").write_text('{"val/accuracy": 0.5, "val/loss": null}')
    assert job.reason == "diverged: val/loss is not a finite number; try a lower lr"


def test_other_settings_in_the_folder_are_told(tmp_path: Path) -> None:
    Job.from_config(composed("epochs=10"), tmp_path / "job").record_start()
    Job.from_config(composed("epochs=10"), tmp_path / "job").check_folder()
    with pytest.raises(
        OccupiedError, match=r"job holds a job with other settings \(epochs=10, here 20\). Choose another sweep.name"
    ):
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
    # While this process has a place, another process gets the other one, and a third one waits.
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
        told = sorted((other.communicate()[0].split() for other in others), key=lambda words: words[1])
    assert [words[0] for words in told] == ["0", "0"]
    assert float(told[1][1]) >= float(told[0][2])  # one after the other


def test_a_worker_has_the_environment_of_its_place() -> None:
    worker = Worker({CORES: "1"})
    assert worker.call(os.getenv, CORES) == "1"
    assert worker.call(available_cores) == 1
    worker.close()


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
def test_a_worker_may_have_processes_of_its_own() -> None:
    worker = Worker()
    assert worker.call(forked) == 0
    worker.close()


def test_a_killed_worker_is_told() -> None:
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
from headstart.data.workers import end_with_parent
end_with_parent()
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
    assert (first.settings, first.mean, first.deviation) == (
        {"lr": 0.1},
        pytest.approx(0.6),
        pytest.approx(0.141421356),
    )
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
    assert len(few) == 5
    assert len(many) == 20
    assert all(job in many for job in few)
    assert few != grid[:5]


# --- ready spaces --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head_lr", "finetune", "backbones"])
def test_every_value_of_a_ready_space_fits(name: str) -> None:
    with initialize_config_dir(str(CONF)):
        params = compose("train", [f"sweep={name}"], return_hydra_config=True).hydra.sweeper.params
    space, fixed, _ = create_params_from_overrides([f"{key}={values}" for key, values in params.items()])
    assert not fixed
    for key, values in space.items():
        bounds = values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for value in bounds:
            composed(f"sweep={name}", f"{key}={value}")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_takes_its_settings(name: str) -> None:
    """Those of SLURM, too, which is not here to run on."""
    with initialize_config_dir(str(CONF)):
        cfg = compose("train", [f"launcher={name}", "sweep.name=x"], return_hydra_config=True)
    check_launcher(cfg)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    at_once = {"joblib": "n_jobs", "submitit_slurm": "array_parallelism"}
    if name in at_once:
        assert launcher[at_once[name]] == cfg.sweep.parallel > 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in REQUIREMENTS if word != "launcher=ray"]
    check_plugins([*words, "lr=1e-3", "launcher=default"])
    monkeypatch.setitem(REQUIREMENTS, "launcher=joblib", ("hydra_plugins.gone", "sweep"))
    monkeypatch.setitem(REQUIREMENTS, "launcher=ray", ("gone.altogether", "ray"))
    for word, extra in (("launcher=joblib", "sweep"), ("launcher=ray", "ray")):
        with pytest.raises(ConfigError, match=rf'{word} needs packages .*: pip install -e ".\[{extra}\]"'):
            check_plugins(["-m", word, "lr=1e-3"])
    groups = {f"{group}={path.stem}" for group in ("sweep", "launcher") for path in (CONF / group).glob("*.yaml")}
    assert set(REQUIREMENTS) == {
        word for word in groups if "pip install" in text_of(word) or "- optuna" in text_of(word)
    }


def text_of(word: str) -> str:
    group, _, name = word.partition("=")
    return (CONF / group / f"{name}.yaml").read_text()


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
