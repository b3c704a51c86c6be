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
from headstart.config.compose import quoted
from headstart.config.schema import Config
from headstart.sweeps.jobs import Job
from headstart.sweeps.naming import job_name, sweep_name
from headstart.utils.errors import ConfigError, format_error

log = logging.getLogger(__name__)

ROUNDS = 3  # most launches of a job whose process was lost


def prepare(cfg: DictConfig) -> None:
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
        words = [word for word in cfg.hydra.overrides.hydra if word.lstrip("+~").startswith("hydra.sweeper.")]
        with read_write(cfg), open_dict(cfg):
            cfg.sweep.name = sweep_name(cfg.hydra.runtime.choices.sweep, [*words, *cfg.hydra.overrides.task])
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


class Launched:
    """The jobs of a sweep, run by one of Hydra's launchers.

    Args:
        launcher: the launcher that runs the jobs.
        loader: the config loader that composes their configurations.
        cfg: the configuration of the sweep.
        swept: the keys that distinguish the jobs.

    Attributes:
        folder: the folder of the sweep.
        failures: reasons of jobs that could not record their failure themselves, by job name.
        importance: a function that returns the fraction of the jobs' variance that each setting explains; by default
            empty.
    """

    def __init__(self, launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, swept: Collection[str]) -> None:
        self._launcher, self._loader, self._cfg, self._swept = launcher, loader, cfg, swept
        self._count = 0
        self.folder = Path(cfg.hydra.sweep.dir)
        self.failures: dict[str, str] = {}
        self.importance: Callable[[], dict[str, float]] = dict

    def job(self, words: Sequence[str]) -> tuple[Job, list[str]]:
        """Create a job and the overrides that Hydra needs to run it.

        Raises:
            ConfigError: its settings do not fit, or set `ckpt_path`.
            OccupiedError: its folder holds something else.
        """
        name = self.name(words)
        told = [*words, f"hydra.sweep.dir={quoted(str(self.folder))}", f"hydra.sweep.subdir={quoted(name)}"]
        settings = self.settings(told)
        if settings.ckpt_path is not None:
            raise ConfigError(
                "ckpt_path: a sweep resumes its jobs itself. Leave it out, or start from weights by model.weights=PATH."
            )
        job = Job.of(settings, self.folder / name)
        job.check_folder()
        return job, told

    def name(self, words: Sequence[str]) -> str:
        """Return the name of the job with these overrides."""
        return job_name(words, self._swept) if self._swept else "job"

    def settings(self, words: Sequence[str]) -> Config:
        """Compose and validate the configuration with these overrides.

        Raises:
            ConfigError: they do not fit.
        """
        try:
            cfg = self._loader.load_sweep_config(self._cfg, list(words))
        except HydraException as error:
            raise ConfigError(" ".join(str(error).split())) from None
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return check(cfg)

    def run(self, batch: Sequence[tuple[Job, list[str]]]) -> None:
        """Run jobs until each has finished or failed; jobs that have finished already are skipped.

        Args:
            batch: jobs and their overrides, as returned by `job`.

        Raises:
            Exception: the launcher raised before it started any job.
        """
        jobs = {job.name: (job, told) for job, told in batch}  # two trials may be the same job
        todo = {name: pair for name, pair in jobs.items() if not pair[0].finished}
        if len(todo) < len(jobs):
            log.info("%d of %d jobs had finished before", len(jobs) - len(todo), len(jobs))
        self.failures = {name: reason for name, reason in self.failures.items() if name not in todo}
        before = {name: job.attempts for name, (job, _) in todo.items()}
        for _ in range(ROUNDS):
            if not todo:
                break
            self._launch(*zip(*todo.values(), strict=True))
            todo = {name: pair for name, pair in todo.items() if not self._ended(pair[0], before[name])}
        for name, (job, _) in todo.items():
            self.failures[name] = f"the process that ran it was lost {ROUNDS} times"
            job.end(self.failures[name])

    def _launch(self, jobs: Sequence[Job], words: Sequence[Sequence[str]]) -> None:
        before = [job.attempts for job in jobs]
        try:
            returns = self._launcher.launch(words, initial_job_idx=self._count)
        except Exception as error:  # one process died, and the results of all others are lost
            if before == [job.attempts for job in jobs]:
                raise
            log.warning("the launcher lost a process: %s. What it ran is launched again.", format_error(error))
        else:
            for job, returned in zip(jobs, returns, strict=True):
                if returned.status is JobStatus.FAILED:
                    self.failures[job.name] = format_error(returned._return_value)
        self._count += len(jobs)

    def _ended(self, job: Job, before: int) -> bool:
        return job.finished or job.name in self.failures or ("ended" in job.record and job.attempts > before)

    def reason(self, job: Job) -> str | None:
        """Return why a job failed; None if it did not."""
        return job.reason or self.failures.get(job.name)
