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
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from headstart.runs.jobs import LOCK, RECORD, Job, OccupiedError, describe_differences
from headstart.sweeps.launching import JobLauncher
from headstart.sweeps.naming import affects_results
from headstart.sweeps.summary import final_summary
from headstart.utils.errors import ConfigError
from headstart.utils.files import write_text
from headstart.utils.metrics import direction

SPECIFICATION = "headstart/specification"  # user attribute of the study: the settings that its values depend on
FOLDER = "headstart/folder"  # user attribute of the study: the sweep folder that owns it
FAILURE = "headstart/failure"  # user attribute of a trial: why it failed
CONTROLLER = ".controller"  # the file that names the process that holds the lock
MIN_TRIALS = 4  # fewest finished trials from which importance is computed
FIXED_SEED = ("QMCSampler",)  # samplers that must keep one seed, because it defines their sequence


def run_search(launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, arguments: Sequence[str]) -> None:
    """Run trials until the study has `n_trials` of them, and print the results.

    hydra-optuna-sweeper parses the search space. Its own loop is not used: it runs another `n_trials` trials each time
    that it is started, and never repeats trials that were killed.

    Raises:
        SystemExit: the settings do not fit, another process controls the study, or a job failed and
            `sweep.allow_failures` is false.
    """
    settings = cfg.hydra.sweeper
    params = [f"{name}={values}" for name, values in (settings.params or {}).items()]
    space, fixed, deletions = create_params_from_overrides([*params, *arguments])
    space = {name: values for name, values in space.items() if name not in fixed}
    overrides = [*(f"{name}={value}" for name, value in fixed.items()), *deletions]
    jobs = JobLauncher(launcher, loader, cfg, {name.lstrip("+") for name in space})
    storage = settings.storage or sqlite_url(jobs.folder)
    with controlled(jobs.folder), final_summary(jobs, cfg):
        check_search(space, settings)
        study = open_study(settings.study_name, storage, monitored_metric(jobs, overrides, space), overrides, space)
        if settings.storage:  # its database may be shared by several folders, each with a lock of its own
            claim_study(study, jobs.folder)
        jobs.importance = partial(compute_importance, study)
        requeue_running(study)
        while (remaining := settings.n_trials - count_finished(study)) > 0:
            trials = [ask_trial(study, space, settings.sampler) for _ in range(min(settings.n_jobs, remaining))]
            run_trials(study, trials, jobs, overrides)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            name = jobs.job_name(parameter_overrides(trial))
            if FAILURE in trial.user_attrs and not (jobs.folder / name / RECORD).exists():  # not in job.json
                jobs.failures[name] = trial.user_attrs[FAILURE]


def check_search(space: Mapping[str, BaseDistribution], settings: DictConfig) -> None:
    """Check that there is a search space, and that its jobs can be given different names.

    Raises:
        ConfigError: the space is empty, is a `custom_search_space`, or is searched with a `GridSampler`.
    """
    if not space:
        raise ConfigError("sweep=optuna: there is nothing to search. Give values, such as head=linear,mlp.")
    if settings.custom_search_space:
        raise ConfigError("hydra.sweeper.custom_search_space is not supported. Give the values as overrides.")
    if settings.sampler["_target_"].endswith("GridSampler"):
        raise ConfigError("hydra/sweeper/sampler=grid: leave sweep=optuna out, and -m runs every combination.")


def ask_trial(study: optuna.Study, space: dict[str, BaseDistribution], sampler: Mapping[str, Any]) -> Trial:
    """Return the next trial with its parameters: an interrupted trial if there is one, otherwise a new one."""
    trials = study.get_trials(deepcopy=False)
    waiting = (trial.number for trial in trials if trial.state == TrialState.WAITING)
    study.sampler = build_sampler(sampler, next(waiting, len(trials)))
    return study.ask(space)


def build_sampler(settings: Mapping[str, Any], number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler, seeded from its own seed and the trial's number.

    An interrupted study thus continues as it would have without the interruption. `QMCSampler` keeps its seed.
    """
    settings, name = dict(settings), settings["_target_"].rpartition(".")[2]
    if "seed" in settings and name not in FIXED_SEED:
        digest = hashlib.sha256(f"{settings['seed']}/{number}".encode()).digest()
        settings["seed"] = int.from_bytes(digest[:4], "big")
    if name == "TPESampler":
        settings["constant_liar"] = True  # parallel trials sample different regions
    allowed = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
    sampler: optuna.samplers.BaseSampler = instantiate(settings, _execution_whitelist_=allowed)
    return sampler


def parameter_overrides(trial: Trial | FrozenTrial) -> list[str]:
    """Return a trial's parameters as overrides, such as `lr=0.01`."""
    return [f"{name}={value}" for name, value in trial.params.items()]


def run_trials(study: optuna.Study, trials: Sequence[Trial], launcher: JobLauncher, overrides: Sequence[str]) -> None:
    """Run the jobs of trials, with their common overrides, and report each value or failure to the study.

    Raises:
        OccupiedError: a job's folder holds something else.
    """
    jobs: dict[Trial, tuple[Job, list[str]]] = {}
    outcomes: dict[Trial, float | str] = {}
    for trial in trials:
        try:
            jobs[trial] = launcher.create_job([*parameter_overrides(trial), *overrides])
        except OccupiedError:
            raise
        except ConfigError as error:  # such as values that are valid only separately
            outcomes[trial] = str(error)
    launcher.run(list(jobs.values()))
    outcomes |= {trial: launcher.failure(job) or job.value() for trial, (job, _) in jobs.items()}
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
    lock, holder = FileLock(folder / LOCK), folder / CONTROLLER
    try:
        lock.acquire(blocking=False)
    except Timeout:
        other = holder.read_text() if holder.exists() else "another process"
        raise SystemExit(
            f"headstart: {folder}: {other} runs this study. Wait until it has ended, end it, or choose another "
            "sweep.name."
        ) from None
    try:
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def monitored_metric(jobs: JobLauncher, overrides: Sequence[str], space: Mapping[str, BaseDistribution]) -> str:
    """Return the metric that all trials monitor, and check their common overrides before the first trial.

    Raises:
        ConfigError: the overrides do not fit.
    """
    try:
        return jobs.compose(overrides).objective
    except ConfigError:  # perhaps a searched key is required, such as data.root=A,B
        return jobs.compose([*overrides, *(f"{key}={first_value(values)}" for key, values in space.items())]).objective


def first_value(values: BaseDistribution) -> Any:
    """Return the first choice of a categorical distribution, or the lower bound of another one."""
    return values.choices[0] if isinstance(values, CategoricalDistribution) else vars(values)["low"]


def sqlite_url(folder: Path) -> str:
    """Return the SQLite URL of the study in a folder.

    Raises:
        SystemExit: the folder's path has characters that a URL cannot contain.
    """
    invalid = " ".join(character for character in "#%?{}" if character in str(folder))
    if invalid:
        raise SystemExit(f"headstart: {folder}: Optuna cannot store a study in a folder with {invalid} in its path.")
    return f"sqlite:///{folder}/study.db"


def open_study(
    name: str,
    storage: str,
    monitor: str,
    overrides: Sequence[str],
    space: Mapping[str, BaseDistribution],
) -> optuna.Study:
    """Open the study of that name in the database of that URL, or create it.

    A later command may move the bounds of the search space, but not change its choices.

    Raises:
        ConfigError: the stored study has another metric, other overrides or another search space, so its values cannot
            be compared; or the database cannot be opened.
    """
    specification = {"monitor": monitor, "overrides": sorted(filter(affects_results, overrides))}
    specification |= {key: describe_distribution(values) for key, values in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its messages repeat the summary
    goal: Literal["minimize", "maximize"] = "minimize" if direction(monitor) == "min" else "maximize"
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=goal, load_if_exists=True)
    except (SQLAlchemyError, StorageInternalError) as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"sweep.storage: the study's database cannot be opened: {message}") from error
    stored = json.loads(study.user_attrs.get(SPECIFICATION, "null"))
    if stored is None:
        study.set_user_attr(SPECIFICATION, json.dumps(specification))
    elif stored != specification:
        differences = describe_differences(stored, specification)
        raise ConfigError(f"the study {name} is another one: {differences}. Choose another sweep.name.")
    return study


def claim_study(study: optuna.Study, folder: Path) -> None:
    """Record the sweep folder that owns a study; only its lock keeps two processes from running the same trials.

    Raises:
        ConfigError: the study belongs to another folder.
    """
    owner = study.user_attrs.get(FOLDER)
    if owner is None:
        study.set_user_attr(FOLDER, str(folder.resolve()))
    elif owner != str(folder.resolve()):
        raise ConfigError(
            f"sweep.storage: the study {study.study_name} belongs to the sweep in {owner}, and this one is in "
            f"{folder.resolve()}. Choose another sweep.name, or continue that sweep by hydra.sweep.dir={owner}."
        )


def describe_distribution(values: BaseDistribution) -> list[str]:
    """Return the part of a key's distribution that must not change within a study."""
    if isinstance(values, CategoricalDistribution):
        return list(map(str, values.choices))
    return [type(values).__name__, "log" if vars(values)["log"] else "linear"]


def requeue_running(study: optuna.Study) -> None:
    """Set trials that the storage reports as running to waiting, with the same parameters.

    This process holds the lock, so the process that controlled them has ended.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def count_finished(study: optuna.Study) -> int:
    """Return the number of trials that have finished, including those that failed."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def compute_importance(study: optuna.Study) -> dict[str, float]:
    """Compute the importance of each hyperparameter: the fraction of the trials' variance that it explains.

    The method is fANOVA (Hutter et al., 2014): a random forest is fitted to the finished trials, and its variance is
    decomposed.

    Returns:
        Fractions in [0, 1] by name, the most important first. Empty if importance cannot be computed: with fewer than
        `MIN_TRIALS` finished trials, or equal values.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < MIN_TRIALS or len({trial.value for trial in trials}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):  # the trials have no hyperparameter in common
        return {}
