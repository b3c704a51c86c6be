"""What every sweep does with its jobs, whoever thinks them up and wherever they run: it survives them."""

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
from headstart.utils.errors import ConfigError, told

log = logging.getLogger(__name__)

ROUNDS = 3  # a job whose process was lost with its machine is launched again, but not for ever


def prepare(cfg: DictConfig) -> None:
    """Gives the sweep the name of its command, unless it has one, and makes its folder.

    Raises:
        SystemExit: the settings of the sweep do not fit; Hydra would print a traceback.
    """
    try:
        check_launcher(cfg)
    except ConfigError as error:
        raise SystemExit(f"headstart: {error}") from None
    if cfg.sweep.name is None:
        # `hydra.sweeper.` words choose values too; the mode and the like do not.
        words = [word for word in cfg.hydra.overrides.hydra if word.lstrip("+~").startswith("hydra.sweeper.")]
        with read_write(cfg), open_dict(cfg):
            cfg.sweep.name = sweep_name(cfg.hydra.runtime.choices.sweep, [*words, *cfg.hydra.overrides.task])
    Path(cfg.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)


def check_launcher(cfg: DictConfig) -> None:
    """Makes sure that the sweep's own settings fit, and that the launcher can do what they say.

    Raises:
        ConfigError: a value of the `sweep` group does not fit, or jobs are to run at the same time with a launcher that
            runs them one after another.
    """
    check_sweep(cfg)
    if cfg.sweep.parallel > 1 and cfg.hydra.runtime.choices["hydra/launcher"] == "basic":
        raise ConfigError(
            f"sweep.parallel={cfg.sweep.parallel}: one process runs one job at a time. Add launcher=joblib."
        )


class Launched:
    """The jobs of a sweep, run by one of Hydra's launchers.

    Args:
        launcher: that runs them.
        loader: that composes their configurations.
        cfg: of the sweep.
        swept: the keys that distinguish jobs.

    Attributes:
        folder: of the sweep.
        failures: what went wrong with jobs that could not record it themselves, by the job's name.
        importance: what tells the share of the jobs' differences that each setting explains, if anything does.
    """

    def __init__(self, launcher: Launcher, loader: ConfigLoader, cfg: DictConfig, swept: Collection[str]) -> None:
        self._launcher, self._loader, self._cfg, self._swept = launcher, loader, cfg, swept
        self._count = 0
        self.folder = Path(cfg.hydra.sweep.dir)
        self.failures: dict[str, str] = {}
        self.importance: Callable[[], dict[str, float]] = dict

    def job(self, words: Sequence[str]) -> tuple[Job, list[str]]:
        """A job, and all that Hydra has to know of it.

        Raises:
            ConfigError: its settings do not fit.
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
        """Of a job, by its words."""
        return job_name(words, self._swept) if self._swept else "job"

    def settings(self, words: Sequence[str]) -> Config:
        """The checked control panel with some words.

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
        """Runs jobs until each has ended one way or another; those that had finished before are left alone.

        Args:
            batch: what `job` gave for each.

        Raises:
            Exception: what the launcher raised, if it ran none.
        """
        jobs = {job.name: (job, told) for job, told in batch}  # two trials may be of the same job
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
        except Exception as error:  # a process that the launcher had started died, and with it the word of all others
            if before == [job.attempts for job in jobs]:
                raise
            log.warning("the launcher lost a process: %s. What it ran is launched again.", told(error))
        else:
            for job, returned in zip(jobs, returns, strict=True):
                if returned.status is JobStatus.FAILED:
                    self.failures[job.name] = told(returned._return_value)
        self._count += len(jobs)

    def _ended(self, job: Job, before: int) -> bool:
        return job.finished or job.name in self.failures or ("ended" in job.record and job.attempts > before)

    def reason(self, job: Job) -> str | None:
        """Why a job failed, if it did."""
        return job.reason or self.failures.get(job.name)
