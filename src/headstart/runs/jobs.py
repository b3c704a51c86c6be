"""A job in its run folder, such as one of a sweep or a cross-validation: settings, record, state, lock and value."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headstart.config.check import TOP_LEVEL_KEYS
from headstart.config.schema import Config
from headstart.models.schemas import JobRecord
from headstart.runs.listing import Plain, flat, read_metrics
from headstart.utils.errors import ConfigError
from headstart.utils.files import read_json, write_json
from headstart.utils.metrics import LAST_EPOCH

log = logging.getLogger(__name__)

RECORD = "job.json"
LOCK = ".lock"
POLL_S = 0.5  # seconds between two attempts to take a lock
# Settings that change neither weights nor metrics: jobs that differ only in these are the same job.
NO_EFFECT = (
    *("ckpt_path", "report", "check", "logger", "sweep", "advise", "trainer.enable_progress_bar"),
    *("data.num_workers", "data.cache_gb", "features.max_gb"),
)


class OccupiedError(ConfigError):
    """A job's folder holds something else; the message says what."""


def digest(config: Config) -> str:
    """Return the SHA-256, in hexadecimal, of the resolved settings that affect a job's metrics."""
    settings = dict(flat(asdict(config), left_out=NO_EFFECT))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """A job and the state of its run folder.

    `digest` is that of the settings, and `settings` has them by dotted name, as `headstart runs` shows them. `monitor`
    is the metric that is the job's value; see `Config.objective`.
    """

    folder: Path
    digest: str
    settings: Mapping[str, Plain]
    monitor: str

    @classmethod
    def from_config(cls, config: Config, folder: Path) -> Job:
        """Create the job of a configuration."""
        copies = map(".".join, TOP_LEVEL_KEYS.values())
        settings = dict(flat(asdict(config), left_out=(*NO_EFFECT, *copies)))
        return cls(folder, digest(config), settings, config.objective)

    @property
    def name(self) -> str:
        """Return the folder's name, which is unique within a sweep."""
        return self.folder.name

    @property
    def record(self) -> dict[str, Any]:
        """Return the contents of job.json; empty if there is none, or if it belongs to another job."""
        record = read_record(self.folder)
        return record if record.get("digest") == self.digest else {}

    @property
    def metrics(self) -> dict[str, float | None]:
        """Return the contents of metrics.json; empty if the job has not finished."""
        return read_metrics(self.folder) if self.record else {}

    @property
    def finished(self) -> bool:
        """Tell whether the job has written its metrics; they may have diverged."""
        return bool(self.metrics)

    @property
    def reason(self) -> str | None:
        """Return why the job failed; None if it did not."""
        record, metrics = self.record, self.metrics
        return describe_divergence(metrics, self.monitor) if metrics else record.get("reason")

    @property
    def attempts(self) -> int:
        """Return the number of times that the job was started."""
        return int(self.record.get("attempts", 0))

    def value(self) -> float:
        """Return the monitored metric; NaN if the job failed or has not finished."""
        value = None if self.reason else self.metrics.get(self.monitor)
        return math.nan if value is None else float(value)

    def check_folder(self, key: str = "sweep.name") -> None:
        """Check that the folder is empty or belongs to this job.

        Args:
            key: the key that names another folder, for the message.

        Raises:
            OccupiedError: it holds a job with other settings, or files that are not a job's.
        """
        record = read_record(self.folder)
        if record.get("digest") == self.digest:
            return
        if record:
            differences = describe_differences(record["settings"], self.settings)
            content = f"a job with other settings ({differences or 'which `headstart runs` does not show'})"
        else:
            # Hidden files belong to headstart: the lock, and a job.json whose writing was interrupted.
            files = sorted(p.name for p in self.folder.glob("[!.]*") if p.suffix != ".log")
            if not files:
                return
            content = f"files that do not belong to a job ({', '.join(files[:3])})"
        raise OccupiedError(f"{self.folder} holds {content}. Choose another {key}, or move that away.")

    def record_start(self) -> None:
        """Record the start of an attempt."""
        self._write(attempts=self.attempts + 1, started=time.time())

    def record_end(self, reason: str | None) -> None:
        """Record the end of the job, with the reason if it failed."""
        self._write(**{**self.record, "reason": reason, "ended": time.time()})

    def _write(self, **state: Any) -> None:
        description = {"digest": self.digest, "monitor": self.monitor, "settings": dict(self.settings)}
        write_json(self.folder / RECORD, {**state, **description})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job's lock, so that only this process runs it; wait if another process holds the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("%s: another process runs it", self.name)
            lock.acquire(poll_interval=POLL_S)
        try:
            yield
        finally:
            lock.release()


def describe_divergence(metrics: Mapping[str, float | None], monitor: str) -> str | None:
    """Describe which losses, or whether the monitored metric, are not finite; return None if all are.

    Only the best checkpoint counts: it is of use even if a later epoch has diverged.
    """
    of_best = [name for name in metrics if not name.startswith(LAST_EPOCH)]
    names = [name for name in of_best if name.endswith("/loss") or name == monitor]
    bad = [name for name in names if (value := metrics[name]) is None or not math.isfinite(value)]
    return f"diverged: {', '.join(bad)} is not a finite number; try a lower lr" if bad else None


def describe_differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe at most five settings whose stored values differ from the current ones, such as `lr=1, here 2`."""
    names = [name for name in dict.fromkeys([*stored, *current]) if stored.get(name) != current.get(name)]
    return "; ".join(f"{name}={stored.get(name)}, here {current.get(name)}" for name in names[:5])


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's job.json; empty if there is none, or it is not valid."""
    try:
        record = read_json(folder / RECORD)
        JobRecord.model_validate(record)
    except (OSError, ValueError):  # a ValidationError is one
        return {}
    return dict(record)


def find_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep that were started, sorted by name."""
    records = {path.parent: read_record(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))}
    return [
        Job(path, record["digest"], record["settings"], record["monitor"]) for path, record in records.items() if record
    ]
