"""Launching of a sweep's jobs by a Hydra launcher, with retries of jobs whose process was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict, read_write

from headstart.config.check import check, check_sweep
from headstart.config.compose import quote
from headstart.config.schema import Config
from headstart.runs.jobs import Job
from headstart.sweeps.naming import job_name, sweep_name
from headstart.utils.errors import ConfigError, format_error

log = logging.getLogger(__name__)

MAX_LAUNCHES = 3  # of a job whose process was lost


def prepare_sweep(cfg: DictConfig) -> None:
    """Set the sweep's name from its command, unless it has one, and create its folder.

    Raises:
        SystemExit: the settings of the sweep do not fit. Hydra would print a traceback for any other exception.
    """
    try:
        check_launcher(cfg)
    except ConfigError as error:
        raise SystemExit(f"headstart: {error}") from None
    if cfg.sweep.name is None:
        # Of Hydra's own overrides, only those of `hydra.sweeper.` affect which jobs there are.
        overrides = [text for text in cfg.hydra.overrides.hydra if text.lstrip("+~").startswith("hydra.sweeper.")]
        with read_write(cfg), open_dict(cfg):
            cfg.sweep.name = sweep_name(cfg.hydra.runtime.choices.sweep, [*overrides, *cfg.hydra.overrides.task])
    Path(cfg.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)


def check_launcher(cfg: DictConfig) -> None:
    """Check the sweep's own settings, and that the launcher supports them.

    Raises:
        ConfigError: a value of the `sweep` group does not fit, or `sweep.parallel` needs a launcher that runs jobs in
            parallel.
    """
    check_sweep(cfg)
    if cfg.sweep.parallel > 1 and cfg.hydra.runtime.choices["hydra/launcher"] == "basic":
        raise ConfigError(
            f"sweep.parallel={cfg.sweep.parallel}: one process runs one job at a time. Add launcher=joblib."
        )


class JobLauncher:
    """Creates the jobs of a sweep, and runs them with one of Hydra's launchers.

    Args:
        launcher: the launcher that runs the jobs.
        loader: the loader that composes their configurations.
        cfg: the configuration of the sweep.
        swept: the keys that distinguish the jobs.

    Attributes:
        folder: the folder of the sweep.
        failures: reasons of jobs that could not record their failure themselves, by job name.
        importance: a function that returns the importance of each hyperparameter; by default empty.
    """

    def __init__(self, launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, swept: Collection[str]) -> None:
        self._launcher, self._loader, self._cfg, self._swept = launcher, loader, cfg, swept
        self._count = 0
        self.folder = Path(cfg.hydra.sweep.dir)
        self.failures: dict[str, str] = {}
        self.importance: Callable[[], dict[str, float]] = dict

    def create_job(self, overrides: Sequence[str]) -> tuple[Job, list[str]]:
        """Create a job and the overrides that Hydra needs to run it.

        Raises:
            ConfigError: its settings do not fit, or set `ckpt_path`.
            OccupiedError: its folder holds something else.
        """
        name = self.job_name(overrides)
        overrides = [*overrides, f"hydra.sweep.dir={quote(str(self.folder))}", f"hydra.sweep.subdir={quote(name)}"]
        config = self.compose(overrides)
        if config.ckpt_path is not None:
            raise ConfigError(
                "ckpt_path: a sweep resumes its jobs itself. Leave it out, or start from weights by model.weights=PATH."
            )
        job = Job.from_config(config, self.folder / name)
        job.check_folder()
        return job, overrides

    def job_name(self, overrides: Sequence[str]) -> str:
        """Return the name of the job with these overrides."""
        return job_name(overrides, self._swept) if self._swept else "job"

    def compose(self, overrides: Sequence[str]) -> Config:
        """Compose and validate the configuration with these overrides.

        Raises:
            ConfigError: they do not fit.
        """
        try:
            cfg = self._loader.load_sweep_config(self._cfg, list(overrides))
        except HydraException as error:
            raise ConfigError(" ".join(str(error).split())) from None
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return check(cfg)

    def run(self, batch: Sequence[tuple[Job, list[str]]]) -> None:
        """Run jobs, with the overrides of `create_job`, until each has finished or failed; skip finished jobs.

        Raises:
            Exception: the launcher raised before it started any job.
        """
        pending = {job.name: (job, overrides) for job, overrides in batch}  # two trials may be the same job
        count = len(pending)
        pending = {name: pair for name, pair in pending.items() if not pair[0].finished}
        if len(pending) < count:
            log.info("%d of %d jobs had finished before", count - len(pending), count)
        self.failures = {name: reason for name, reason in self.failures.items() if name not in pending}
        before = {name: job.attempts for name, (job, _) in pending.items()}
        for _ in range(MAX_LAUNCHES):
            if not pending:
                break
            self._launch(*zip(*pending.values(), strict=True))
            pending = {name: pair for name, pair in pending.items() if not self._has_ended(pair[0], before[name])}
        for name, (job, _) in pending.items():
            self.failures[name] = f"the process that ran it was lost {MAX_LAUNCHES} times"
            job.record_end(self.failures[name])

    def _launch(self, jobs: Sequence[Job], overrides: Sequence[Sequence[str]]) -> None:
        before = [job.attempts for job in jobs]
        try:
            returns = self._launcher.launch(overrides, initial_job_idx=self._count)
        except Exception as error:  # one process died, and the results of all others are lost
            if before == [job.attempts for job in jobs]:
                raise
            log.warning("the launcher lost a process: %s. Its jobs are launched again.", format_error(error))
        else:
            for job, returned in zip(jobs, returns, strict=True):
                if returned.status is JobStatus.FAILED:
                    self.failures[job.name] = format_error(returned._return_value)
        self._count += len(jobs)

    def _has_ended(self, job: Job, before: int) -> bool:
        return job.finished or job.name in self.failures or ("ended" in job.record and job.attempts > before)

    def failure(self, job: Job) -> str | None:
        """Return why a job failed; None if it did not."""
        return job.reason or self.failures.get(job.name)
