"""Results of a sweep, read from its folder for tables and the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from headstart.runs.jobs import find_jobs
from headstart.runs.listing import Plain, Run, differing, format_setting, sorted_by
from headstart.sweeps.seeds import SeedGroup, group_by_seed

AVERAGED = ("val/accuracy", "val/loss", "test/accuracy")  # metrics that are averaged over seeds, too


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Attributes:
        folder: the folder of the sweep.
        metric: the monitored metric.
        runs: the finished jobs, the best first; then those that have not ended; then those that failed.
        failures: reasons by job name, also of jobs that never started and are not among the runs.
        started: start time of each job in seconds since the epoch, by job name.
    """

    folder: Path
    metric: str
    runs: Sequence[Run]
    failures: Mapping[str, str]
    started: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, metric: str, lost: Mapping[str, str]) -> Sweep:
        """Read the results from a sweep's folder.

        Args:
            folder: the folder of the sweep.
            metric: the monitored metric, used if there is no job that records it.
            lost: reasons of jobs that could not record their failure, by name; those that finished since are ignored.
        """
        jobs = find_jobs(folder)
        metric = jobs[0].monitor if jobs else metric  # an experiment may have set it
        reasons = {job.name: job.reason for job in jobs if job.reason or job.finished}
        failures = {name: reason for name, reason in {**lost, **reasons}.items() if reason}
        runs = [
            Run(job.folder, job.settings, {}, status="failed")
            if job.name in failures
            else Run(job.folder, job.settings, job.metrics)
            for job in jobs
        ]
        runs = sorted(sorted_by(runs, metric), key=lambda run: run.folder.name in failures)
        return cls(folder, metric, runs, failures, {job.name: job.record.get("started", 0.0) for job in jobs})

    @cached_property
    def done(self) -> list[Run]:
        """Return the jobs that have the monitored metric, the best first."""
        return [run for run in self.runs if run.metrics.get(self.metric) is not None]

    @property
    def best(self) -> Run:
        """Return the best job."""
        return self.done[0]

    @property
    def unfinished(self) -> int:
        """Return the number of jobs that have not ended."""
        return sum(not run.metrics and run.folder.name not in self.failures for run in self.runs)

    @cached_property
    def groups(self) -> dict[str, list[SeedGroup]]:
        """Return groups of runs that differ only in their seeds, the best mean first, by metric.

        The monitored metric comes first; metrics without such groups are left out.
        """
        names = dict.fromkeys((self.metric, *AVERAGED))
        return {name: groups for name in names if (groups := group_by_seed(self.runs, name))}

    @cached_property
    def names(self) -> list[str]:
        """Return the settings that have several values in the sweep.

        A setting that only some jobs have, such as `head.hidden`, counts only if it differs among these.
        """
        names = differing(self.runs)
        values = {name: {repr(run.settings[name]) for run in self.runs if name in run.settings} for name in names}
        return [name for name in names if len(values[name]) > 1]

    def overrides(self, settings: Mapping[str, Plain | None]) -> list[str]:
        """Return the given settings that differ within the sweep, as overrides such as `lr=0.01`."""
        return [f"{name}={format_setting(value)}" for name in self.names if (value := settings.get(name)) is not None]

    def href(self, run: Run) -> str:
        """Return a relative link from the sweep's page to a job's report, or to its folder if there is no report."""
        has_report = (run.folder / "report" / "index.html").exists()
        return quote(os.fsencode(run.folder.name)) + ("/report/index.html" if has_report else "/")
