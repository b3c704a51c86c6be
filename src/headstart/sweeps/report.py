"""The report of a sweep: its best job, what seeds and settings do to the monitored metric, all jobs, the failures."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from headstart.report.html import render
from headstart.report.style import short, svg
from headstart.runs.listing import SHOWN, Plain, Run, differing, setting, sorted_by
from headstart.sweeps import charts
from headstart.sweeps.jobs import Job, failures_of, jobs_below
from headstart.sweeps.seeds import SEED, Repeated, repeated
from headstart.utils.errors import told
from headstart.utils.files import write_text
from headstart.utils.metrics import direction

log = logging.getLogger(__name__)

CHARTS = 12  # settings that have one
LOGS = 20  # failed jobs whose log's end is shown
LINES = 15  # of it
COMPARED = 4  # jobs in the command that compares the best image by image


def report_sweep(
    folder: Path, best: Path, importance: Mapping[str, float], lost: Mapping[str, str] | None = None
) -> list[str]:
    """Writes the sweep's index.html, and the report of its best run unless there is one.

    Args:
        folder: of the sweep.
        best: the run folder of its best job.
        importance: of each hyperparameter that an Optuna study chose; empty for a grid.
        lost: why jobs failed that could not record it, by their names.

    Returns:
        Lines that tell where the reports are.
    """
    lines, page = [], best / "report" / "index.html"
    try:
        if not page.exists() or page.stat().st_mtime < (best / "metrics.json").stat().st_mtime:
            from headstart.report.run_report import report_again

            page = report_again(best)
        lines.append(f"report of the best run: {page}")
    except Exception as error:  # such as images that are gone: the sweep's own report needs none
        log.warning("there is no report of the best run: %s", told(error))
    sweep = Sweep.read(folder, best.name, lost or {})
    write_text(folder / "index.html", page_of(sweep, importance))
    return [*lines, f"report of the sweep: {folder / 'index.html'}"]


@dataclass(frozen=True)
class Sweep:
    """What the jobs of a sweep have left in its folder.

    Attributes:
        folder: of the sweep.
        metric: that is monitored.
        runs: the finished jobs, the best first, then those that have not ended, then those that failed.
        failures: why, by the names of the jobs.
        started: when each job was begun, in seconds, by its name.
    """

    folder: Path
    metric: str
    runs: Sequence[Run]
    failures: Mapping[str, str]
    started: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, best: str, lost: Mapping[str, str]) -> Sweep:
        """Reads a sweep's folder.

        Args:
            folder: of the sweep.
            best: the name of a finished job: what it monitors counts.
            lost: why jobs failed that could not record it, by their names.
        """
        jobs = jobs_below(folder)
        failures = failures_of(jobs, lost)
        metric = next(job.monitor for job in jobs if job.name == best)
        runs = [Run(job.folder, job.settings, {} if job.name in failures else finite(job)) for job in jobs]
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

    @cached_property
    def names(self) -> list[str]:
        """The settings that differ; those that come with another one, such as head.hidden with a head, do not count."""
        differ = differing(self.runs)
        values = {name: {repr(run.settings[name]) for run in self.runs if name in run.settings} for name in differ}
        return [name for name in differ if len(values[name]) > 1]

    @cached_property
    def groups(self) -> list[Repeated]:
        """The settings that were run under several seeds, the best mean first; empty if none were."""
        sign = 1 if direction(self.metric) == "min" else -1
        return sorted(repeated(self.runs, self.metric), key=lambda group: sign * group.mean)

    def words(self, settings: Mapping[str, Plain | None]) -> list[str]:
        """Those of the settings that differ, such as `lr=0.01`."""
        return [f"{name}={setting(value)}" for name in self.names if (value := settings.get(name)) is not None]

    def href(self, run: Run) -> str:
        """A link from the sweep's page: to a job's report if there is one, or else to its folder."""
        has_report = (run.folder / "report" / "index.html").exists()
        return quote(os.fsencode(run.folder.name)) + ("/report/index.html" if has_report else "/")


def finite(job: Job) -> dict[str, float | None]:
    """A job's metrics; what is no finite number is None."""
    return {name: None if value is None or not math.isfinite(value) else value for name, value in job.metrics.items()}


def page_of(sweep: Sweep, importance: Mapping[str, float]) -> str:
    """The web page."""
    drawn = {name: chart for name, draw in figures(sweep, importance).items() if (chart := attempt(name, draw))}
    failed = list(sweep.failures)
    others = [name for name in SHOWN if name != sweep.metric and not name.startswith(("epochs/", "time/"))]
    return render(
        "sweep.html.j2",
        sweep=sweep,
        unfinished=sum(not run.metrics and run.folder.name not in sweep.failures for run in sweep.runs),
        figure_text=figure_text,
        spread_text=spread_text,
        groups=list(group_rows(sweep)),
        charts=drawn,
        setting_charts=[chart for name, chart in drawn.items() if name.startswith("by ")],
        uncharted=max(0, len(charted(sweep, importance)) - CHARTS),
        metrics=shown_metrics(sweep),
        scores=[name for name in others if sweep.best.metrics.get(name) is not None],
        short=short,
        setting=setting,
        logs={name: tail(sweep.folder / name / "train.log") for name in failed[:LOGS]},
        commands=commands(sweep),
    )


def figure_text(metric: str, value: float | None) -> str:
    """A figure as the page shows it."""
    return "" if value is None else f"{value:.2%}" if "accuracy" in metric else f"{value:.4g}"


def spread_text(metric: str, deviation: float | None) -> str:
    """A standard deviation after what it is of; empty where there is none."""
    return "" if deviation is None else f" ± {deviation:.2%}" if "accuracy" in metric else f" ± {deviation:.2g}"


def shown_metrics(sweep: Sweep) -> list[str]:
    """The monitored metric, and others that jobs differ in."""
    found = {name: {run.metrics.get(name) for run in sweep.done} for name in (sweep.metric, *SHOWN)}
    return [name for name, values in found.items() if name == sweep.metric or len(values) > 1]


def group_rows(sweep: Sweep) -> Iterator[tuple[Repeated, Repeated | None]]:
    """The settings under several seeds, and the test accuracy of the same ones if it is not what is monitored."""
    other = "test/accuracy"
    others = repeated(sweep.runs, other) if sweep.metric != other else []
    for group in sweep.groups:
        yield group, next((found for found in others if found.settings == group.settings), None)


def commands(sweep: Sweep) -> dict[str, str]:
    """What one may do next, and how."""
    best = sweep.best.folder.resolve()
    found = {
        "To see the jobs on the terminal:": ["headstart", "runs", str(sweep.folder.resolve()), "--sort", sweep.metric],
        "To train the best job again:": ["python", "train.py", f"--config-path={best}", "--config-name=config"],
    }
    first = [str(run.folder.resolve()) for run in sweep.done[:COMPARED]]
    if len(first) > 1:
        found["To compare the best ones image by image:"] = ["headstart", "report", *first]
    return {purpose: shlex.join(words) for purpose, words in found.items()}


def tail(path: Path) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, LINES)).rstrip()
    except OSError:
        return ""


# --- charts --------------------------------------------------------------------------------------------------


def figures(sweep: Sweep, importance: Mapping[str, float]) -> dict[str, Callable[[], Figure]]:
    """What draws each chart, by name; those of settings begin with "by "."""
    metric, done = sweep.metric, sweep.done
    found: dict[str, Callable[[], Figure]] = {}
    if sweep.groups:
        named = [(group_name(sweep, group), group) for group in sweep.groups]
        found["seeds"] = partial(charts.by_seeds, named, metric)
    if importance:
        in_order = sorted(sweep.runs, key=lambda run: sweep.started[run.folder.name])
        found["history"] = partial(charts.history, in_order, metric)
        found["importance"] = partial(charts.importances, importance)
    failed = [run for run in sweep.runs if run.folder.name in sweep.failures]
    for name in charted(sweep, importance)[:CHARTS]:
        found[f"by {name}"] = partial(charts.by_setting, done, failed, name, metric)
    return found


def attempt(name: str, draw: Callable[[], Figure]) -> Markup | None:
    """A chart; or None and a warning, as a chart must not cost the rest."""
    try:
        return Markup(svg(draw()))
    except Exception as error:  # of whatever library
        log.warning("the chart %s cannot be shown: %s", name, told(error))
        return None


def group_name(sweep: Sweep, group: Repeated) -> str:
    """What tells settings under several seeds apart from others."""
    return ", ".join(word.replace(".name=", "=", 1) for word in sweep.words(group.settings)) or "all jobs"


def charted(sweep: Sweep, importance: Mapping[str, float]) -> list[str]:
    """The settings that have charts, the most important first; a seed that is averaged over is none."""
    shares = {name.lstrip("+"): share for name, share in importance.items()}

    def share(name: str) -> float:
        return shares.get(name, shares.get(name.removesuffix(".name"), 0.0))

    names = [
        name
        for name in sweep.names
        if len(sweep.done) > 1
        and not (name == SEED and sweep.groups)
        and any(name in run.settings for run in sweep.done)
    ]
    return sorted(names, key=share, reverse=True)
