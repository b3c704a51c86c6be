"""Report of a sweep as a web page: its best job, charts of the monitored metric, all jobs and the failures."""

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
from headstart.runs.listing import TABLE_METRICS, format_setting
from headstart.sweeps import charts
from headstart.sweeps.results import Sweep
from headstart.sweeps.seeds import SEED, SeedGroup
from headstart.utils.errors import format_error
from headstart.utils.files import write_text

log = logging.getLogger(__name__)

MAX_CHARTS = 12  # most settings that get a chart
MAX_LOGS = 20  # most failed jobs whose log is shown
LOG_LINES = 15  # last lines of a log that are shown
MAX_COMPARED = 4  # best jobs in the suggested command that compares runs


def report_sweep(sweep: Sweep, importance: Mapping[str, float]) -> list[str]:
    """Write the index.html of a sweep with a finished job, and the report of its best run unless that is up to date.

    The importance of hyperparameters is that of an Optuna study; it is empty for a grid. Return lines of text with the
    paths of the reports.
    """
    lines, best = [], sweep.best.folder
    page = best / "report" / "index.html"
    try:
        if not page.exists() or page.stat().st_mtime < (best / "metrics.json").stat().st_mtime:
            from headstart.report.run_report import report_again

            page = report_again(best)
        lines.append(f"report of the best run: {page}")
    except Exception as error:  # such as missing images, which the sweep's own report does not need
        log.warning("there is no report of the best run: %s", format_error(error))
    write_text(sweep.folder / "index.html", render_page(sweep, importance))
    return [*lines, f"report of the sweep: {sweep.folder / 'index.html'}"]


def render_page(sweep: Sweep, importance: Mapping[str, float]) -> str:
    """Return the HTML of the sweep's page."""
    functions = chart_functions(sweep, importance)
    drawn = {name: chart for name, draw in functions.items() if (chart := draw_svg(name, draw))}
    others = [name for name in TABLE_METRICS if name != sweep.metric and not name.startswith(("epochs/", "time/"))]
    return render(
        "sweep.html.j2",
        sweep=sweep,
        unfinished=sweep.unfinished,
        format_metric=format_metric,
        format_deviation=format_deviation,
        groups=list(group_rows(sweep)),
        charts=drawn,
        setting_charts=[chart for name, chart in drawn.items() if name.startswith("by ")],
        without_chart=max(0, len(charted_settings(sweep, importance)) - MAX_CHARTS),
        metrics=shown_metrics(sweep),
        scores=[name for name in others if sweep.best.metrics.get(name) is not None],
        short=short,
        setting=format_setting,
        logs={name: last_lines(sweep.folder / name / "train.log") for name in list(sweep.failures)[:MAX_LOGS]},
        commands=suggested_commands(sweep),
    )


def format_metric(metric: str, value: float | None) -> str:
    """Format a metric for the page; None gives an empty string."""
    return "" if value is None else f"{value:.2%}" if "accuracy" in metric else f"{value:.4g}"


def format_deviation(metric: str, deviation: float | None) -> str:
    """Format a standard deviation to follow its mean; None gives an empty string."""
    return "" if deviation is None else f" ± {deviation:.2%}" if "accuracy" in metric else f" ± {deviation:.2g}"


def shown_metrics(sweep: Sweep) -> list[str]:
    """Return the monitored metric, and the other metrics in which jobs differ."""
    others = [name for name in TABLE_METRICS if len({run.metrics.get(name) for run in sweep.done}) > 1]
    return list(dict.fromkeys((sweep.metric, *others)))


def group_rows(sweep: Sweep) -> Iterator[tuple[SeedGroup, SeedGroup | None]]:
    """Yield each group of runs over seeds, with its test accuracy if another metric is monitored."""
    tests = [] if sweep.metric == "test/accuracy" else sweep.groups.get("test/accuracy", [])
    for group in sweep.groups.get(sweep.metric, []):
        yield group, group.matching(tests)


def suggested_commands(sweep: Sweep) -> dict[str, str]:
    """Return suggested commands by purpose."""
    best = sweep.best.folder.resolve()
    commands = {
        "To see the jobs on the terminal:": ["headstart", "runs", str(sweep.folder.resolve()), "--sort", sweep.metric],
        "To train the best job again:": ["python", "train.py", f"--config-path={best}", "--config-name=config"],
    }
    compared = [str(run.folder.resolve()) for run in sweep.done[:MAX_COMPARED]]
    if len(compared) > 1:
        commands["To compare the best ones image by image:"] = ["headstart", "report", *compared]
    return {purpose: shlex.join(command) for purpose, command in commands.items()}


def last_lines(path: Path) -> str:
    """Return the last `LOG_LINES` lines of a log; an empty string if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, LOG_LINES)).rstrip()
    except OSError:
        return ""


# --- charts --------------------------------------------------------------------------------------------------


def chart_functions(sweep: Sweep, importance: Mapping[str, float]) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw the charts, by name; names of charts by setting begin with "by "."""
    metric, functions = sweep.metric, dict[str, Callable[[], Figure]]()
    if groups := sweep.groups.get(metric):
        named = [(group_name(sweep, group), group) for group in groups]
        functions["seeds"] = partial(charts.by_seeds, named, metric)
    if importance:
        in_order = sorted(sweep.runs, key=lambda run: sweep.started[run.folder.name])
        functions["history"] = partial(charts.history, in_order, metric)
        functions["importance"] = partial(charts.importances, importance)
    failed = [run for run in sweep.runs if run.folder.name in sweep.failures]
    for name in charted_settings(sweep, importance)[:MAX_CHARTS]:
        functions[f"by {name}"] = partial(charts.by_setting, sweep.done, failed, name, metric)
    return functions


def draw_svg(name: str, draw: Callable[[], Figure]) -> Markup | None:
    """Draw a chart as SVG; if that raises, log a warning and return None, so that the page is still written."""
    try:
        return Markup(svg(draw()))
    except Exception as error:  # any library may raise anything
        log.warning("the chart %s cannot be shown: %s", name, format_error(error))
        return None


def group_name(sweep: Sweep, group: SeedGroup) -> str:
    """Return a name for a group of runs over seeds: its settings that differ within the sweep."""
    return ", ".join(text.replace(".name=", "=", 1) for text in sweep.overrides(group.settings)) or "all jobs"


def charted_settings(sweep: Sweep, importance: Mapping[str, float]) -> list[str]:
    """Return the settings that get charts, the most important first, without a seed that groups average over."""
    if len(sweep.done) < 2:
        return []
    by_key = {name.lstrip("+"): fraction for name, fraction in importance.items()}
    having_values = {name for run in sweep.done for name in run.settings}
    names = [name for name in sweep.names if name in having_values and not (name == SEED and sweep.groups)]
    return sorted(names, key=lambda name: by_key.get(name, by_key.get(name.removesuffix(".name"), 0.0)), reverse=True)
