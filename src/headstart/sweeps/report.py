"""The report of a sweep: its best job, what seeds and settings do to the monitored metric, all jobs, the failures."""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from headstart.report.html import render
from headstart.report.style import short, svg
from headstart.runs.listing import SHOWN, setting
from headstart.sweeps import charts
from headstart.sweeps.results import Sweep
from headstart.sweeps.seeds import SEED, Repeated
from headstart.utils.errors import told
from headstart.utils.files import write_text

log = logging.getLogger(__name__)

CHARTS = 12  # settings that have one
LOGS = 20  # failed jobs whose log's end is shown
LINES = 15  # of it
COMPARED = 4  # jobs in the command that compares the best image by image


def report_sweep(sweep: Sweep, importance: Mapping[str, float]) -> list[str]:
    """Writes the sweep's index.html, and the report of its best run unless there is one.

    Args:
        sweep: what its jobs have left; one at least has finished.
        importance: of each hyperparameter that an Optuna study chose; empty for a grid.

    Returns:
        Lines that tell where the reports are.
    """
    lines, best = [], sweep.best.folder
    page = best / "report" / "index.html"
    try:
        if not page.exists() or page.stat().st_mtime < (best / "metrics.json").stat().st_mtime:
            from headstart.report.run_report import report_again

            page = report_again(best)
        lines.append(f"report of the best run: {page}")
    except Exception as error:  # such as images that are gone: the sweep's own report needs none
        log.warning("there is no report of the best run: %s", told(error))
    write_text(sweep.folder / "index.html", page_of(sweep, importance))
    return [*lines, f"report of the sweep: {sweep.folder / 'index.html'}"]


def page_of(sweep: Sweep, importance: Mapping[str, float]) -> str:
    """The web page."""
    drawn = {name: chart for name, draw in figures(sweep, importance).items() if (chart := attempt(name, draw))}
    failed = list(sweep.failures)
    others = [name for name in SHOWN if name != sweep.metric and not name.startswith(("epochs/", "time/"))]
    return render(
        "sweep.html.j2",
        sweep=sweep,
        unfinished=sweep.unfinished,
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
    """Yields the settings under several seeds, and the test accuracy of the same ones if it is not monitored."""
    tests = [] if sweep.metric == "test/accuracy" else sweep.groups.get("test/accuracy", [])
    for group in sweep.groups.get(sweep.metric, []):
        yield group, group.same_of(tests)


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
    if groups := sweep.groups.get(metric):
        named = [(group_name(sweep, group), group) for group in groups]
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
