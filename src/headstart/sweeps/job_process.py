"""Running one job of a sweep: in its folder, from where it was interrupted, in a process that may die."""

from __future__ import annotations

import atexit
import gc
import logging
import logging.config
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from omegaconf import OmegaConf

from headstart.config.compose import CONF, quoted
from headstart.config.schema import Config
from headstart.data.workers import CORES, available_cores, end_with_parent
from headstart.sweeps.jobs import Job
from headstart.sweeps.slots import share, slot
from headstart.sweeps.worker import DiedError, FailedError, Worker
from headstart.utils.console import guard_logs
from headstart.utils.errors import HeadstartError

log = logging.getLogger(__name__)

SHARING = ("joblib", "submitit_local", "ray")  # launchers that start several jobs on one machine

_worker: Worker | None = None
_place: int | None = None


def run_job(config: Config, hydra: HydraConf) -> float:
    """Runs a job unless it has finished, and records how it ended; what a job raises is its result.

    Args:
        config: the checked control panel.
        hydra: of the job: its folder, its number in the sweep, its launcher and how it logs.

    Returns:
        The monitored value of the best checkpoint; NaN if the job failed.
    """
    folder = Path(hydra.runtime.output_dir)
    job = Job.of(config, folder)
    with job.lock():
        if job.finished:
            return job.value()
        job.check_folder()
        with place(config, hydra) as environment:
            job.begin()
            try:
                worker = _working(environment)
                worker.call(train_job, config, job, OmegaConf.to_container(hydra.job_logging, resolve=True))
                reason = None
            except (HeadstartError, FailedError, DiedError) as error:
                # What goes wrong after the figures are written, such as in a report, costs none of them.
                reason = None if job.finished else str(error)
            if config.trainer.devices != 1 or config.trainer.strategy != "auto":
                worker.close()  # Lightning's processes of several devices cannot be had twice in one process
            job.end(reason)
        if job.reason:
            log.error("%s failed: %s", job.name, job.reason)
        else:
            log.info("%s: %s %.4f, %.1f s", job.name, job.monitor, job.value(), job.metrics["time/total_s"])
        return job.value()


@contextmanager
def place(config: Config, hydra: HydraConf) -> Iterator[dict[str, str]]:
    """Waits for a share of this machine, if jobs share it, and gives the environment to run in."""
    global _place
    launcher = hydra.runtime.choices["hydra/launcher"]
    if launcher not in SHARING or (launcher == "joblib" and config.sweep.parallel == 1):
        yield {}
        return
    if launcher == "joblib" and _place is None:
        end_with_parent()
    # The former place again: its GPU is the one that the worker has.
    first = hydra.job.num if _place is None else _place
    with slot(Path(hydra.runtime.output_dir).parent, first, config.sweep.parallel) as _place:
        gpu = config.trainer.accelerator in ("auto", "gpu") and config.trainer.devices == 1
        yield share(_place, config.sweep.parallel, gpu=gpu)


def _working(environment: Mapping[str, str]) -> Worker:
    """The worker of this process; another one if there is none, none any more, or one with another environment."""
    global _worker
    if _worker is not None and _worker.alive and _worker.environment != environment:
        _worker.close()
    if _worker is None or not _worker.alive:
        _worker = Worker(environment)
        atexit.register(_worker.close)
    return _worker


def call(function: Any, *arguments: Any) -> Any:
    """Calls a function in this process's worker; see `Worker.call`."""
    return _working({}).call(function, *arguments)


def train_job(config: Config, job: Job, log_config: dict[str, Any]) -> None:
    """In the worker: trains, from the last checkpoint if there is one that can be read."""
    logging.config.dictConfig(log_config)
    guard_logs()
    import torch

    from headstart import train
    from headstart.models.model_folder import read_checkpoint
    from headstart.utils.errors import ModelError

    if CORES in os.environ:
        torch.set_num_threads(available_cores())
    if gc.get_freeze_count() == 0:
        gc.freeze()  # a million objects of the libraries, which every collection would go through
    last = job.folder / "checkpoints" / "last.ckpt"
    resumed: str | None = str(last)
    try:
        read_checkpoint(last)
    except ModelError as error:
        if last.exists():
            log.warning("%s Training starts anew.", error)
        resumed = None
        job.clear()
    # Processes that Lightning starts for other devices run this command.
    sys.argv = [
        str(CONF.parent / "train.py"),
        f"--config-path={job.folder.resolve()}",
        "--config-name=config",
        f"hydra.run.dir={quoted(str(job.folder))}",
        "hydra.output_subdir=null",
        *([] if resumed is None else [f"ckpt_path={quoted(resumed)}"]),
    ]
    bar = config.trainer.enable_progress_bar and config.sweep.parallel == 1
    settings = replace(
        config,
        ckpt_path=resumed,
        trainer=replace(config.trainer, enable_progress_bar=bar),
    )
    try:
        train.run(settings, job.folder, sweep=True)
    except HeadstartError:
        raise
    except Exception:
        log.exception("the job raised")  # the whole traceback into its log
        raise
