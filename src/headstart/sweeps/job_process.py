"""Execution of one job of a sweep: in its run folder, from its last checkpoint, in a subprocess that may crash."""

from __future__ import annotations

import atexit
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

from headstart.config.compose import quote
from headstart.config.presets import CONF
from headstart.config.schema import Config
from headstart.data.workers import CORES, available_cores, exit_with_parent
from headstart.runs.jobs import Job
from headstart.sweeps.slots import slot, slot_environment
from headstart.sweeps.worker import DiedError, FailedError, Worker
from headstart.utils.console import guard_logs
from headstart.utils.errors import HeadstartError
from headstart.utils.garbage import freeze_imports

log = logging.getLogger(__name__)

LOCAL_LAUNCHERS = ("joblib", "submitit_local", "ray")  # launchers that start several jobs on one machine

_worker: Worker | None = None
_slot: int | None = None


def run_job(config: Config, hydra: HydraConf) -> float:
    """Run a job unless it has finished, and record its outcome; errors of the job are recorded, not raised.

    Returns:
        The monitored metric of the best checkpoint, or of a cross-validation its mean; NaN if the job failed.

    Raises:
        OccupiedError: the folder holds something else.
    """
    job = Job.from_config(config, Path(hydra.runtime.output_dir))
    with job.lock():
        if job.finished:
            return job.value()
        job.check_folder()
        with assigned_slot(config, hydra) as environment:
            job.record_start()
            try:
                worker = _get_worker(environment)
                worker.call(train_job, config, job, OmegaConf.to_container(hydra.job_logging, resolve=True))
                reason = None
            except (HeadstartError, FailedError, DiedError) as error:
                # An error after metrics.json was written, such as in a report, is not a failure of the job.
                reason = None if job.finished else str(error)
            if config.trainer.devices != 1 or config.trainer.strategy != "auto":
                worker.close()  # Lightning cannot start its processes for several devices twice in one process
            job.record_end(reason)
        if job.reason:
            log.error("%s failed: %s", job.name, job.reason)
        else:
            log.info("%s: %s %.4f, %.1f s", job.name, job.monitor, job.value(), job.metrics["time/total_s"])
        return job.value()


@contextmanager
def assigned_slot(config: Config, hydra: HydraConf) -> Iterator[dict[str, str]]:
    """Wait for a free slot if jobs share this machine, and yield the environment variables of the job."""
    global _slot
    launcher = hydra.runtime.choices["hydra/launcher"]
    if launcher not in LOCAL_LAUNCHERS or (launcher == "joblib" and config.sweep.parallel == 1):
        yield {}
        return
    if launcher == "joblib" and _slot is None:
        exit_with_parent()
    # The worker already uses the GPU of its former slot, so try that slot first.
    first = hydra.job.num if _slot is None else _slot
    with slot(Path(hydra.runtime.output_dir).parent, first, config.sweep.parallel) as _slot:
        gpu = config.trainer.accelerator in ("auto", "gpu") and config.trainer.devices == 1
        yield slot_environment(_slot, config.sweep.parallel, gpu=gpu)


def _get_worker(environment: Mapping[str, str]) -> Worker:
    """Return this process's worker, or start one if there is none, it has ended, or its environment differs."""
    global _worker
    if _worker is not None and _worker.alive and _worker.environment != environment:
        _worker.close()
    if _worker is None or not _worker.alive:
        _worker = Worker(environment)
        atexit.register(_worker.close)
    return _worker


def call_in_worker(function: Any, *arguments: Any) -> Any:
    """Call a function in this process's worker; see `Worker.call`."""
    return _get_worker({}).call(function, *arguments)


def train_job(config: Config, job: Job, log_config: dict[str, Any]) -> None:
    """Train in the worker process, from the last checkpoint if it can be read; `log_config` is for `dictConfig`."""
    logging.config.dictConfig(log_config)
    guard_logs()
    import torch

    from headstart import train
    from headstart.cross_validation.run import cross_validate
    from headstart.runs.resuming import prepare_to_continue

    if CORES in os.environ:
        torch.set_num_threads(available_cores())
    freeze_imports()
    ckpt_path = prepare_to_continue(job.folder)
    # Lightning starts its processes for other devices with this command.
    sys.argv = [
        str(CONF.parent / "train.py"),
        f"--config-path={job.folder.resolve()}",
        "--config-name=config",
        f"hydra.run.dir={quote(str(job.folder))}",
        "hydra.output_subdir=null",
        *([f"ckpt_path={quote(ckpt_path)}"] if ckpt_path else []),
    ]
    bar = config.trainer.enable_progress_bar and config.sweep.parallel == 1
    config = replace(config, ckpt_path=ckpt_path, trainer=replace(config.trainer, enable_progress_bar=bar))
    try:
        if config.cross_validates:
            cross_validate(config, job.folder, sweep=True)
        else:
            train.run(config, job.folder, sweep=True)
    except HeadstartError:
        raise
    except Exception:
        log.exception("the job raised")  # writes the traceback to the job's log
        raise
