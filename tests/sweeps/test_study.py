"""Studies of Optuna: they continue where they stopped, have one controller, and report the importance of settings."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from headstart.sweeps.study import build_sampler, count_finished, open_study, requeue_running, sqlite_url
from headstart.utils.errors import ConfigError
from tests.helpers.kill_points import killed_at
from tests.helpers.sweeps import QUICK, check_not_repeated, composed_with_hydra, finished, rows, swept

SEARCH = ("sweep=head_lr", "sweep.name=search", *QUICK)


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").get_trials()


# Where a study of three trials is killed, all of its processes at once, command after command.
KILLS = (("after a checkpoint", 3), ("after the figures", 1), ("before the figures", 2))


def test_a_killed_study_ends_as_one_that_is_not(tmp_path: Path) -> None:
    seen, overrides = [], (*SEARCH, "sweep.trials=3")
    for point, count in KILLS:
        result = swept(tmp_path / "killed", *overrides, environment=killed_at(point, count))
        assert result.returncode == -signal.SIGKILL, result.stderr
        seen.append(finished(tmp_path / "killed"))
    assert [len(jobs) for jobs in seen] == [0, 1, 2]
    result = swept(tmp_path / "killed", *overrides)
    assert result.returncode == 0, result.stderr
    trials = trials_of(tmp_path / "killed")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    check_not_repeated([*seen, finished(tmp_path / "killed")])
    # The search is the same as one without interruptions.
    assert swept(tmp_path / "undisturbed", *overrides).returncode == 0
    undisturbed = trials_of(tmp_path / "undisturbed")
    assert [(trial.params, trial.value) for trial in trials] == [(trial.params, trial.value) for trial in undisturbed]
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    # Again, with more: only those are run.
    more = swept(tmp_path / "killed", *SEARCH, "sweep.trials=4")
    assert more.stdout.count("val/accuracy 0.") == 2  # the new job, and the best run
    assert len(trials_of(tmp_path / "killed")) == 4


def test_a_study_with_failed_trials_reports_the_importance_of_settings(tmp_path: Path) -> None:
    """Trials that fail are results of the study, and of the exit status."""
    folder = tmp_path / "sweep"
    space = ("lr=choice(1e-6,1e-2)", "head=linear,mlp", "model.weights=default,gone.pth")
    result = swept(folder, "sweep=optuna", "sweep.name=search", "sweep.trials=8", *space, *QUICK)
    assert result.returncode == 1
    trials = trials_of(folder)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(trials) == 8
    assert 0 < len(failed) < 8
    for trial in trials:
        assert (trial.state == TrialState.FAIL) == (trial.params["model.weights"] == "gone.pth")
        assert ("headstart/failure" in trial.user_attrs) == (trial in failed)
    assert "importance, the fraction of the variance that each setting explains: lr " in result.stdout
    best = max((trial for trial in trials if trial not in failed), key=lambda trial: trial.value)
    assert f"best run: {folder}/head={best.params['head']},lr={best.params['lr']}" in result.stdout
    # Two trials with the same choices are one job, which is run once.
    jobs = [json.loads(path.read_text()) for path in folder.glob("*/job.json")]
    assert len(jobs) == len({tuple(trial.params.values()) for trial in trials})
    assert sum(job["attempts"] for job in jobs) <= len(trials)


def test_an_interrupted_trial_is_run_again_with_its_values(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    done, running, bare = study.ask(), study.ask(), study.ask()  # the last one was killed before it had values
    study.tell(done, 0.5)
    lr = running.suggest_float("lr", 0, 1)
    requeue_running(study)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, *[TrialState.WAITING] * 2]
    assert count_finished(study) == 1
    again = [study.ask(), study.ask()]
    assert [trial.number for trial in again] == [running.number, bare.number]
    assert again[0].suggest_float("lr", 0, 1) == lr


HOLD = """
import sys
from pathlib import Path
from headstart.sweeps.study import controlled
with controlled(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_command_is_refused_while_one_runs_the_study(tmp_path: Path) -> None:
    overrides = (*SEARCH, "sweep.trials=1")
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = swept(tmp_path, *overrides)
        assert refused.returncode == 1
        assert refused.stderr.strip() == (
            f"headstart: {tmp_path}: process {first.pid} on {socket.gethostname()} runs this study. "
            "Wait until it has ended, end it, or choose another sweep.name."
        )
        assert not (tmp_path / "study.db").exists()
        first.kill()
    assert swept(tmp_path, *overrides).returncode == 0  # a killed process holds no lock


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "nsgaii"])
def test_every_trial_has_a_random_state_of_its_own(sampler: str) -> None:
    """An interrupted study goes on as it would have, and two trials do not draw the same."""
    settings = composed_with_hydra("sweep=optuna", f"hydra/sweeper/sampler={sampler}").hydra.sweeper.sampler

    def drawn(count: int) -> list[float]:
        study, values = optuna.create_study(), []
        for number in range(count):
            study.sampler = build_sampler(settings, number)
            trial = study.ask()
            values.append(trial.suggest_float("lr", 0, 1))
            trial.suggest_float("decay", 0, 1)
            study.tell(trial, values[-1])
        return values

    values = drawn(5)
    assert len(set(values)) == 5
    assert drawn(5) == values


def test_a_study_is_of_one_metric_and_one_space(tmp_path: Path) -> None:
    storage, space = f"sqlite:///{tmp_path}/study.db", {"head": CategoricalDistribution(["linear", "mlp"])}
    fixed = ["report=false", "data=digits"]
    study = open_study("one", storage, "val/accuracy", fixed, space)
    again = ["data=digits", "report=true", "launcher=joblib", "features.max_gb=5"]
    assert open_study("one", storage, "val/accuracy", again, space).study_name == study.study_name
    with pytest.raises(ConfigError, match="the study one is another one: monitor=val/accuracy, here val/loss. Choose"):
        open_study("one", storage, "val/loss", fixed, space)
    with pytest.raises(ConfigError, match=r"overrides=\['data=digits'\], here \['data=pets'\]"):
        open_study("one", storage, "val/accuracy", ["data=pets"], space)
    with pytest.raises(ConfigError, match=r"head=\['linear', 'mlp'\], here \['linear'\]"):
        open_study("one", storage, "val/accuracy", fixed, {"head": CategoricalDistribution(["linear"])})
    with pytest.raises(ConfigError, match="sweep.storage: the study's database cannot be opened: .*unable to open"):
        open_study("one", f"sqlite:///{tmp_path}/nowhere/study.db", "val/accuracy", [], {})
    with pytest.raises(SystemExit, match=r"a\?b: Optuna cannot store a study in a folder with \? in its path"):
        sqlite_url(Path("a?b"))


def test_a_study_in_a_shared_database_belongs_to_one_sweep_folder(tmp_path: Path) -> None:
    """Each folder has a lock of its own, so two folders would run each other's trials."""
    overrides = (*SEARCH, f"sweep.storage=sqlite:///{tmp_path}/shared.db", "sweep.trials=1")
    assert swept(tmp_path / "first", *overrides).returncode == 0
    refused = swept(tmp_path / "second", *overrides)
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        f"headstart: sweep.storage: the study search belongs to the sweep in {tmp_path}/first, and this one is in "
        f"{tmp_path}/second. Choose another sweep.name, or continue that sweep by hydra.sweep.dir={tmp_path}/first."
    )
    assert swept(tmp_path / "first", *overrides).returncode == 0


def test_a_trial_whose_values_do_not_fit_is_a_failed_trial(tmp_path: Path) -> None:
    space = ("loss.label_smoothing=choice(0.1,1.5)", "lr=choice(1e-3,1e-2)")
    search = ("sweep=optuna", "sweep.name=search", *space)
    result = swept(tmp_path, *search, "sweep.trials=6", *QUICK)
    assert result.returncode == 1
    assert {trial.state for trial in trials_of(tmp_path)} == {TrialState.COMPLETE, TrialState.FAIL}
    assert "loss.label_smoothing=1.5: expected a number of at least 0 and below 1." in result.stdout
    # Again: there is nothing to run, and the failures are listed again.
    again = swept(tmp_path, *search, "sweep.trials=6", *QUICK)
    assert again.returncode == 1
    assert "loss.label_smoothing=1.5: expected a number" in again.stdout
    assert "Launching" not in again.stdout
    wrong = swept(tmp_path, *search, "epochs=0", *QUICK[:2])
    assert wrong.stderr.strip().startswith("headstart: epochs=0: expected a whole number of at least 1")
