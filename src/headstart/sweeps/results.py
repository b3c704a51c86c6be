"""What the jobs of a sweep have left in its folder, for its tables and its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from headstart.runs.listing import Plain, Run, differing, setting, sorted_by
from headstart.sweeps.jobs import jobs_below
from headstart.sweeps.seeds import Repeated, repeated

REPEATED = ("val/accuracy", "val/loss", "test/accuracy")  # that seeds are averaged over, after the monitored metric


@dataclass(frozen=True)
class Sweep:
    """What the jobs of a sweep have left in its folder.

    Attributes:
        folder: of the sweep.
        metric: that is monitored.
        runs: the finished jobs, the best first, then those that have not ended, then those that failed.
        failures: why, by the names of the jobs; those that never began are not among the runs.
        started: when each job was begun, in seconds, by its name.
    """

    folder: Path
    metric: str
    runs: Sequence[Run]
    failures: Mapping[str, str]
    started: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, metric: str, lost: Mapping[str, str]) -> Sweep:
        """Reads a sweep's folder.

        Args:
            folder: of the sweep.
            metric: that is monitored, if there is no job to ask.
            lost: why jobs failed that could not record it, by their names; what has finished since has not failed.
        """
        jobs = jobs_below(folder)
        metric = jobs[0].monitor if jobs else metric  # which an experiment may have chosen
        reasons = {job.name: job.reason for job in jobs if job.reason or job.finished}
        failures = {name: reason for name, reason in {**lost, **reasons}.items() if reason}
        runs = [Run(job.folder, job.settings, {} if job.name in failures else job.metrics) for job in jobs]
        runs = sorted(sorted_by(runs, metric), key=lambda run: run.folder.name in failures)
        return cls(folder, metric, runs, failures, {job.name: job.record.get("started", 0.0) for job in jobs})

    @cached_property
    def done(self) -> list[Run]:
        """The jobs that have the metric, the best first."""
        return [run for run in self.runs if run.metrics.get(self.metric) is not None]

    @property
    def best(self) -> Run:
        """The best job."""
        return self.done[0]

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return sum(not run.metrics and run.folder.name not in self.failures for run in self.runs)

    @cached_property
    def groups(self) -> dict[str, list[Repeated]]:
        """The settings that were run under several seeds, the best mean first, by metric; the monitored one first."""
        found = {name: repeated(self.runs, name) for name in dict.fromkeys((self.metric, *REPEATED))}
        return {name: groups for name, groups in found.items() if groups}

    @cached_property
    def names(self) -> list[str]:
        """The settings that differ; those that come with another one, such as head.hidden with a head, do not count."""
        differ = differing(self.runs)
        values = {name: {repr(run.settings[name]) for run in self.runs if name in run.settings} for name in differ}
        return [name for name in differ if len(values[name]) > 1]

    def words(self, settings: Mapping[str, Plain | None]) -> list[str]:
        """Those of the settings that differ, such as `lr=0.01`."""
        return [f"{name}={setting(value)}" for name in self.names if (value := settings.get(name)) is not None]

    def href(self, run: Run) -> str:
        """A link from the sweep's page: to a job's report if there is one, or else to its folder."""
        has_report = (run.folder / "report" / "index.html").exists()
        return quote(os.fsencode(run.folder.name)) + ("/report/index.html" if has_report else "/")
