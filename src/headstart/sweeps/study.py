"""An Optuna study whose trials are a sweep's jobs. One process controls it, and it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from headstart.sweeps.jobs import LOCK, RECORD, Job, OccupiedError
from headstart.sweeps.launching import Launched
from headstart.sweeps.naming import is_elsewhere
from headstart.sweeps.summary import ended
from headstart.utils.errors import ConfigError
from headstart.utils.files import write_text
from headstart.utils.locks import ByteLocks
from headstart.utils.metrics import direction

ABOUT = "headstart/about"  # an attribute of the study: what its values depend on
FAILURE = "headstart/failure"  # an attribute of a trial: why it failed
CONTROLLER = ".controller"  # the file that names the process that holds the lock
ENOUGH = 4  # trials that are the least to say anything of what matters
STATEFUL = ("QMCSampler",)  # its sequence is that of its seed


def search(launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, arguments: Sequence[str]) -> None:
    """Runs trials until the study has as many as were asked for, and tells what came of them.

    hydra-optuna-sweeper reads the space. The loop is ours: its own runs as many trials each time it is started, and
    never runs those again that were killed.

    Args:
        launcher: that runs the jobs.
        loader: that composes their configurations.
        cfg: of the sweep.
        arguments: the words of the command line.
    """
    settings = cfg.hydra.sweeper
    params = [f"{name}={values}" for name, values in (settings.params or {}).items()]
    space, fixed, removed = create_params_from_overrides([*params, *arguments])
    space = {name: values for name, values in space.items() if name not in fixed}
    words = [*(f"{name}={value}" for name, value in fixed.items()), *removed]
    launched = Launched(launcher, loader, cfg, {name.lstrip("+") for name in space})
    storage = settings.storage or sqlite(launched.folder)
    with controlled(launched.folder), ended(launched, cfg):
        check_search(space, settings)
        study = open_study(settings.study_name, storage, monitored(launched, words, space), words, space)
        launched.importance = partial(importance, study)
        run_stale_again(study)
        while (left := settings.n_trials - count_ended(study)) > 0:
            trials = [ask(study, space, settings.sampler) for _ in range(min(settings.n_jobs, left))]
            run_trials(study, trials, launched, words)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            name = launched.name(chosen(trial))
            if FAILURE in trial.user_attrs and not (launched.folder / name / RECORD).exists():  # which would say it
                launched.failures[name] = trial.user_attrs[FAILURE]


def check_search(space: Mapping[str, BaseDistribution], settings: DictConfig) -> None:
    """Makes sure that there is something to search, in a way that jobs can be told apart.

    Raises:
        ConfigError: there is not.
    """
    if not space:
        raise ConfigError("sweep=optuna: there is nothing to search. Give values, such as head=linear,mlp.")
    if settings.custom_search_space:
        raise ConfigError("hydra.sweeper.custom_search_space: jobs could not be told apart. Give values by words.")
    if settings.sampler["_target_"].endswith("GridSampler"):
        raise ConfigError("hydra/sweeper/sampler=grid: leave sweep=optuna out, and -m runs every combination.")


def ask(study: optuna.Study, space: dict[str, BaseDistribution], sampler: Mapping[str, Any]) -> Trial:
    """Returns the next trial, with its values: one that was interrupted, or else a new one."""
    trials = study.get_trials(deepcopy=False)
    waiting = (trial.number for trial in trials if trial.state == TrialState.WAITING)
    study.sampler = seeded(sampler, next(waiting, len(trials)))
    return study.ask(space)


def seeded(settings: Mapping[str, Any], number: int) -> optuna.samplers.BaseSampler:
    """The sampler, its random state that of the trial's number: an interrupted study goes on as it would have."""
    settings, name = dict(settings), settings["_target_"].rpartition(".")[2]
    if "seed" in settings and name not in STATEFUL:
        digest = hashlib.sha256(f"{settings['seed']}/{number}".encode()).digest()
        settings["seed"] = int.from_bytes(digest[:4], "big")
    if name == "TPESampler":
        settings["constant_liar"] = True  # trials that run at the same time keep away from each other
    allowed = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
    sampler: optuna.samplers.BaseSampler = instantiate(settings, _execution_whitelist_=allowed)
    return sampler


def chosen(trial: Trial | FrozenTrial) -> list[str]:
    """Returns the words of a trial's values, such as `lr=0.01`."""
    return [f"{name}={value}" for name, value in trial.params.items()]


def run_trials(study: optuna.Study, trials: Sequence[Trial], launched: Launched, words: Sequence[str]) -> None:
    """Runs the jobs of trials and tells the study what came of them: a value, or a failure, which is a result, too."""
    jobs: dict[Trial, tuple[Job, list[str]]] = {}
    outcomes: dict[Trial, float | str] = {}
    for trial in trials:
        try:
            jobs[trial] = launched.job([*chosen(trial), *words])
        except OccupiedError:
            raise
        except ConfigError as error:  # such as values that are fit one by one, and not together
            outcomes[trial] = str(error)
    launched.run(list(jobs.values()))
    outcomes |= {trial: launched.reason(job) or job.value() for trial, (job, _) in jobs.items()}
    for trial, outcome in outcomes.items():
        if isinstance(outcome, str):
            trial.set_user_attr(FAILURE, outcome)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, outcome)


@contextmanager
def controlled(folder: Path) -> Iterator[None]:
    """Makes this process the only one that controls the study of a folder.

    Raises:
        SystemExit: another process does; Hydra would print a traceback.
    """
    locks, holder = ByteLocks(folder / LOCK), folder / CONTROLLER
    try:
        if not locks.take(0):
            told = holder.read_text() if holder.exists() else "another process"
            raise SystemExit(
                f"headstart: {folder}: {told} runs this study. Wait until it has ended, end it, or choose another "
                "sweep.name."
            )
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        locks.close()


def monitored(launched: Launched, words: Sequence[str], space: Mapping[str, BaseDistribution]) -> str:
    """The metric of all trials, from the words that they share: those are checked before there is a trial.

    Raises:
        ConfigError: the words do not fit.
    """
    try:
        return launched.settings(words).monitor
    except ConfigError:  # perhaps for want of what is searched, such as data.root=A,B
        return launched.settings([*words, *(f"{key}={first_value(values)}" for key, values in space.items())]).monitor


def first_value(values: BaseDistribution) -> Any:
    """The first choice, or the lower bound."""
    return values.choices[0] if isinstance(values, CategoricalDistribution) else vars(values)["low"]


def sqlite(folder: Path) -> str:
    """The URL of a study in a folder.

    Raises:
        SystemExit: a URL cannot name the folder.
    """
    odd = sorted({character for character in str(folder) if character in "?#%{}"})
    if odd:
        raise SystemExit(f"headstart: {folder}: Optuna cannot keep a study where there is {' '.join(odd)} in the name.")
    return f"sqlite:///{folder}/study.db"


def open_study(
    name: str,
    storage: str,
    monitor: str,
    words: Sequence[str],
    space: Mapping[str, BaseDistribution],
) -> optuna.Study:
    """The study of that name, or a new one.

    Args:
        name: of the study.
        storage: a database's URL.
        monitor: the metric.
        words: that all trials share.
        space: of what is searched. Bounds may be moved from one command to the next, choices not.

    Raises:
        ConfigError: the study is of other words: its values say nothing of these; or there is no database.
    """
    about = {"monitor": monitor, "words": sorted(word for word in words if not is_elsewhere(word))}
    about |= {key: kind(values) for key, values in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it repeats what the summary tells
    way: Literal["minimize", "maximize"] = "minimize" if direction(monitor) == "min" else "maximize"
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=way, load_if_exists=True)
    except (SQLAlchemyError, StorageInternalError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"sweep.storage: the study's database cannot be opened: {told}") from error
    former = json.loads(study.user_attrs.get(ABOUT, "null"))
    if former is None:
        study.set_user_attr(ABOUT, json.dumps(about))
    elif former != about:
        differ = [key for key in dict.fromkeys([*former, *about]) if former.get(key) != about.get(key)]
        told = "; ".join(f"{key} {former.get(key)}, here {about.get(key)}" for key in differ)
        raise ConfigError(f"the study {name} is another one: {told}. Choose another sweep.name.")
    return study


def kind(values: BaseDistribution) -> list[str]:
    """What of a key's values a study cannot change."""
    if isinstance(values, CategoricalDistribution):
        return list(map(str, values.choices))
    return [type(values).__name__, "log" if vars(values)["log"] else "linear"]


def run_stale_again(study: optuna.Study) -> None:
    """Lets the trials wait that the storage calls running: their controller is gone. They keep their values."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def count_ended(study: optuna.Study) -> int:
    """Returns the number of trials that were run, well or not."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def importance(study: optuna.Study) -> dict[str, float]:
    """The share of the differences between trials that each hyperparameter explains.

    By fANOVA (Hutter et al., 2014): a forest is fitted to the finished trials, and its variance taken apart.

    Returns:
        The most important first; empty where it cannot be told, as with fewer than `ENOUGH` finished trials.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH or len({trial.value for trial in done}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # no hyperparameter that all of them have
        return {}
    return found
