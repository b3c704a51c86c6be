"""Optuna's sweeps: they go on where they stopped, share a study, and know what mattered."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra import compose, initialize_config_dir
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from headstart.sweeps import trials
from headstart.sweeps.study import StudySweeper, open_study, sqlite, tell
from headstart.utils.errors import ConfigError
from tests.helpers.commands import ended, script, started
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import CONF
from tests.helpers.sweeps import QUICK, check_kept, finished, rows, swept

SEARCH = ("sweep=head_lr", "sweep.name=search", *QUICK)


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").get_trials()


# Where a study of three trials is killed, all of its processes at once, command after command.
KILLS = (("after a checkpoint", 3), ("after the figures", 1), ("before the figures", 2))


def test_a_killed_study_ends_as_one_that_is_not(tmp_path: Path) -> None:
    seen, words = [], (*SEARCH, "sweep.trials=3")
    for point, count in KILLS:
        result = swept(tmp_path / "killed", *words, environment=killed_at(point, count))
        assert result.returncode == -signal.SIGKILL, result.stderr
        seen.append(finished(tmp_path / "killed"))
    assert [len(jobs) for jobs in seen] == [0, 1, 2]
    result = swept(tmp_path / "killed", *words)
    assert result.returncode == 0, result.stderr
    found = trials_of(tmp_path / "killed")
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    check_kept([*seen, finished(tmp_path / "killed")])
    # The search went the way that it would have gone.
    assert swept(tmp_path / "undisturbed", *words).returncode == 0
    undisturbed = trials_of(tmp_path / "undisturbed")
    assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in undisturbed]
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    # Again, with more: only those are run.
    more = swept(tmp_path / "killed", *SEARCH, "sweep.trials=4")
    assert more.stdout.count("val/accuracy 0.") == 2  # the new job, and the best run
    assert len(trials_of(tmp_path / "killed")) == 4


def test_a_study_finds_and_tells_what_matters(tmp_path: Path) -> None:
    """Trials that fail are results of the study, and of the exit status."""
    folder = tmp_path / "sweep"
    space = ("lr=choice(1e-6,1e-2)", "head=linear,mlp", "model.weights=default,gone.pth")
    result = swept(folder, "sweep=optuna", "sweep.name=search", "sweep.trials=8", *space, *QUICK)
    assert result.returncode == 1
    found = trials_of(folder)
    failed = [trial for trial in found if trial.state == TrialState.FAIL]
    assert len(found) == 8
    assert 0 < len(failed) < 8
    for trial in found:
        assert (trial.state == TrialState.FAIL) == (trial.params["model.weights"] == "gone.pth")
        assert ("headstart/failure" in trial.user_attrs) == (trial in failed)
    assert "share of the differences that each setting explains: lr " in result.stdout
    best = max((trial for trial in found if trial not in failed), key=lambda trial: trial.value)
    assert f"best run: {folder}/head={best.params['head']},lr={best.params['lr']}" in result.stdout
    # Two trials with the same choices are one job, which is run once.
    jobs = {tuple(trial.params.values()) for trial in found}
    assert len(list(folder.glob("*/job.json"))) == len(jobs)
    assert sum(json.loads(path.read_text())["attempts"] for path in folder.glob("*/job.json")) <= len(found)


def owned(study: optuna.Study, owner: str | None = None, age_s: float = 0) -> optuna.trial.FrozenTrial:
    trial = study.ask()
    if owner:
        trial.set_user_attr(trials.OWNER, owner)
        trial.set_user_attr(trials.ALIVE, time.time() - age_s)
    return study.get_trials()[-1]


def test_a_trial_is_lost_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "FRESH_S", 0.1)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    machine, gone = trials.here(), 2**22 + 1  # more than Linux has processes
    assert not trials.lost(owned(study, f"{machine} {os.getpid()} {trials.token(os.getpid())}"))
    assert trials.lost(owned(study, f"{machine} {gone} of-another-process"))
    assert trials.lost(owned(study, f"{machine} {os.getpid()} of-a-former-process"))
    assert trials.lost(owned(study, f"{machine} {os.getppid()} of-a-former-process", age_s=1000))
    assert not trials.lost(owned(study, "elsewhere/pid 1 token", age_s=100))
    assert trials.lost(owned(study, "elsewhere/pid 1 token", age_s=1000))
    assert trials.lost(owned(study))
    # Those that are lost wait for another process, with the values that they had.
    assert trials.taken(study) == 2
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert [trial.number for trial in waiting] == [1, 2, 3, 5, 6]
    assert len(trials.running(study)) == 2
    # What is taken over is not lost again at once, although its former owner was last heard of long ago.
    for _ in range(4):
        again = study.ask()
        trials.own(again)
    assert again.number == 5
    assert not trials.lost(study.get_trials()[5])
    assert trials.is_mine(again)


def test_an_interruption_leaves_trials_to_whoever_comes(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    mine, done, others = study.ask(), study.ask(), study.ask()
    for trial in (mine, done, others):
        trials.own(trial)
    with suppress(KeyboardInterrupt), trials.kept_alive([mine, done, others]):
        tell(study, done, 0.5)
        others.set_user_attr(trials.OWNER, "elsewhere/pid 1 token")
        tell(study, others, 0.7)  # another process took it over: it is that one's to tell
        raise KeyboardInterrupt
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.WAITING, TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "nsgaii"])
def test_every_trial_has_a_random_state_of_its_own(sampler: str) -> None:
    """An interrupted study goes on as it would have, and two trials do not draw the same."""
    with initialize_config_dir(str(CONF)):
        words = ["sweep=optuna", f"hydra/sweeper/sampler={sampler}"]
        settings = compose("train", words, return_hydra_config=True).hydra.sweeper.sampler

    def drawn(count: int) -> list[float]:
        study, values = optuna.create_study(), []
        for number in range(count):
            study.sampler = StudySweeper._seeded(SimpleNamespace(sampler=settings), number)  # type: ignore[arg-type]
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
    with pytest.raises(ConfigError, match="the study one is another one: monitor val/accuracy, here val/loss. Choose"):
        open_study("one", storage, "val/loss", fixed, space)
    with pytest.raises(ConfigError, match=r"words \['data=digits'\], here \['data=pets'\]"):
        open_study("one", storage, "val/accuracy", ["data=pets"], space)
    with pytest.raises(ConfigError, match=r"head \['linear', 'mlp'\], here \['linear'\]"):
        open_study("one", storage, "val/accuracy", fixed, {"head": CategoricalDistribution(["linear"])})
    with pytest.raises(SystemExit, match=r"a\?b: Optuna cannot keep a study where there is \? in the name"):
        sqlite(Path("a?b"))


def test_a_trial_whose_values_do_not_fit_is_a_failed_trial(tmp_path: Path) -> None:
    space = ("loss.label_smoothing=choice(0.1,1.5)", "lr=choice(1e-3,1e-2)")
    result = swept(tmp_path, "sweep=optuna", "sweep.name=search", "sweep.trials=6", *space, *QUICK)
    assert result.returncode == 1
    states = {trial.state for trial in trials_of(tmp_path)}
    assert states == {TrialState.COMPLETE, TrialState.FAIL}
    assert "loss.label_smoothing=1.5: expected a number of at least 0 and below 1." in result.stdout
    # Again: nothing is left to do, and what failed is told again.
    again = swept(tmp_path, "sweep=optuna", "sweep.name=search", "sweep.trials=6", *space, *QUICK)
    assert again.returncode == 1
    assert "loss.label_smoothing=1.5: expected a number" in again.stdout
    assert "Launching" not in again.stdout
    wrong = swept(tmp_path, "sweep=optuna", "sweep.name=search", "epochs=0", *space, *QUICK[:2])
    assert wrong.stderr.strip().startswith("headstart: epochs=0: expected a whole number of at least 1")


OPEN_TOGETHER = """
import sys, time
from pathlib import Path
from headstart.sweeps.study import open_study
folder, mine = Path(sys.argv[1]), sys.argv[2]
for number in range(3):
    Path(folder, f"{number} ready {mine}").touch()
    while len(list(folder.glob(f"{number} ready *"))) < 4:
        time.sleep(0.001)
    open_study("one", f"sqlite:///{folder}/{number}.db", "val/accuracy", ["data=digits"], {})
"""


def test_a_study_is_made_once_however_many_make_it(tmp_path: Path) -> None:
    """The database's tables, too: Optuna alone fails with "table studies already exists"."""
    for result in map(ended, [script(OPEN_TOGETHER, tmp_path, str(number)) for number in range(4)]):
        assert result.returncode == 0, result.stderr
    for number in range(3):
        assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/{number}.db") == ["one"]
    with pytest.raises(ConfigError, match="sweep.storage: the study's database cannot be opened: .*unable to open"):
        open_study("one", f"sqlite:///{tmp_path}/nowhere/study.db", "val/accuracy", [], {})


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """As two machines with one database would."""
    words = ("-m", *SEARCH, "sweep.trials=4", f"hydra.sweep.dir={tmp_path}")
    for result in map(ended, [started(*words), started(*words)]):
        assert result.returncode == 0, result.stdout + result.stderr
    found = trials_of(tmp_path)
    # Both may see that one is left and ask for it: one of them gives it back.
    assert sum(trial.state == TrialState.COMPLETE for trial in found) == 4
    assert {trial.state for trial in found[4:]} <= {TrialState.WAITING}
    assert all(attempts == 1 for _, attempts in finished(tmp_path).values())
