"""Resumable Optuna study whose trials are the jobs of a sweep, controlled by one process at a time."""

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

ABOUT = "headstart/about"  # user attribute of the study: the settings that its values depend on
FAILURE = "headstart/failure"  # user attribute of a trial: why it failed
CONTROLLER = ".controller"  # the file that names the process that holds the lock
ENOUGH = 4  # fewest finished trials from which importance is computed
STATEFUL = ("QMCSampler",)  # samplers that must keep one seed, because it defines their sequence


def search(launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, arguments: Sequence[str]) -> None:
    """Run trials until the study has `n_trials` of them, and print the results.

    hydra-optuna-sweeper parses the search space. Its own loop is not used: it runs another `n_trials` trials each time
    that it is started, and never repeats trials that were killed.

    Args:
        launcher: the Hydra launcher that runs the jobs.
        loader: the Hydra config loader that composes their configurations.
        cfg: the configuration of the sweep.
        arguments: the overrides of the command line.

    Raises:
        SystemExit: the settings do not fit, another process controls the study, or a job failed and
            `sweep.allow_failures` is false.
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
            if FAILURE in trial.user_attrs and not (launched.folder / name / RECORD).exists():  # not in job.json
                launched.failures[name] = trial.user_attrs[FAILURE]


def check_search(space: Mapping[str, BaseDistribution], settings: DictConfig) -> None:
    """Check that there is a search space, and that its jobs can be given different names.

    Raises:
        ConfigError: the space is empty, is a `custom_search_space`, or is searched with a `GridSampler`.
    """
    if not space:
        raise ConfigError("sweep=optuna: there is nothing to search. Give values, such as head=linear,mlp.")
    if settings.custom_search_space:
        raise ConfigError("hydra.sweeper.custom_search_space: jobs could not be told apart. Give values by words.")
    if settings.sampler["_target_"].endswith("GridSampler"):
        raise ConfigError("hydra/sweeper/sampler=grid: leave sweep=optuna out, and -m runs every combination.")


def ask(study: optuna.Study, space: dict[str, BaseDistribution], sampler: Mapping[str, Any]) -> Trial:
    """Return the next trial with its parameters: an interrupted trial if there is one, otherwise a new one."""
    trials = study.get_trials(deepcopy=False)
    waiting = (trial.number for trial in trials if trial.state == TrialState.WAITING)
    study.sampler = seeded(sampler, next(waiting, len(trials)))
    return study.ask(space)


def seeded(settings: Mapping[str, Any], number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler, seeded from its own seed and the trial's number.

    An interrupted study thus continues as it would have without the interruption. `QMCSampler` keeps its seed.
    """
    settings, name = dict(settings), settings["_target_"].rpartition(".")[2]
    if "seed" in settings and name not in STATEFUL:
        digest = hashlib.sha256(f"{settings['seed']}/{number}".encode()).digest()
        settings["seed"] = int.from_bytes(digest[:4], "big")
    if name == "TPESampler":
        settings["constant_liar"] = True  # parallel trials sample different regions
    allowed = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
    sampler: optuna.samplers.BaseSampler = instantiate(settings, _execution_whitelist_=allowed)
    return sampler


def chosen(trial: Trial | FrozenTrial) -> list[str]:
    """Return a trial's parameters as overrides, such as `lr=0.01`."""
    return [f"{name}={value}" for name, value in trial.params.items()]


def run_trials(study: optuna.Study, trials: Sequence[Trial], launched: Launched, words: Sequence[str]) -> None:
    """Run the jobs of trials and report each outcome to the study: a value or a failure.

    Args:
        study: the study.
        trials: trials with parameters.
        launched: the jobs of the sweep.
        words: the overrides that all trials have in common.

    Raises:
        OccupiedError: a job's folder holds something else.
    """
    jobs: dict[Trial, tuple[Job, list[str]]] = {}
    outcomes: dict[Trial, float | str] = {}
    for trial in trials:
        try:
            jobs[trial] = launched.job([*chosen(trial), *words])
        except OccupiedError:
            raise
        except ConfigError as error:  # such as values that are valid only separately
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
    """Hold the lock of a study's folder, so that only this process controls the study.

    Raises:
        SystemExit: another process holds the lock. Hydra would print a traceback for any other exception.
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
    """Return the metric that all trials monitor, and check their common overrides before the first trial.

    Raises:
        ConfigError: the overrides do not fit.
    """
    try:
        return launched.settings(words).monitor
    except ConfigError:  # perhaps a searched key is required, such as data.root=A,B
        return launched.settings([*words, *(f"{key}={first_value(values)}" for key, values in space.items())]).monitor


def first_value(values: BaseDistribution) -> Any:
    """Return the first choice of a categorical distribution, or the lower bound of another one."""
    return values.choices[0] if isinstance(values, CategoricalDistribution) else vars(values)["low"]


def sqlite(folder: Path) -> str:
    """Return the SQLite URL of the study in a folder.

    Raises:
        SystemExit: the folder's path has characters that a URL cannot contain.
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
    """Open the study of that name, or create it.

    Args:
        name: the study's name.
        storage: the URL of its database.
        monitor: the metric that is optimised.
        words: the overrides that all trials have in common.
        space: the search space. A later command may move bounds, but not change choices.

    Raises:
        ConfigError: the stored study has another metric, other overrides or another search space, so its values cannot
            be compared; or the database cannot be opened.
    """
    about = {"monitor": monitor, "words": sorted(word for word in words if not is_elsewhere(word))}
    about |= {key: kind(values) for key, values in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its messages repeat the summary
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
    """Return the part of a key's distribution that must not change within a study."""
    if isinstance(values, CategoricalDistribution):
        return list(map(str, values.choices))
    return [type(values).__name__, "log" if vars(values)["log"] else "linear"]


def run_stale_again(study: optuna.Study) -> None:
    """Set trials that the storage reports as running to waiting, with the same parameters.

    This process holds the lock, so the process that controlled them has ended.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def count_ended(study: optuna.Study) -> int:
    """Return the number of trials that have finished, including those that failed."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def importance(study: optuna.Study) -> dict[str, float]:
    """Compute the importance of each hyperparameter: the fraction of the trials' variance that it explains.

    The method is fANOVA (Hutter et al., 2014): a random forest is fitted to the finished trials, and its variance is
    decomposed.

    Returns:
        Fractions in [0, 1] by name, the most important first. Empty if importance cannot be computed: with fewer than
        `ENOUGH` finished trials, or equal values.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH or len({trial.value for trial in done}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # the trials have no hyperparameter in common
        return {}
    return found
