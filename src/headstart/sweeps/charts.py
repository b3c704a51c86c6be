"""Charts of a sweep: the monitored metric by setting, over seeds, and in the order of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from headstart.report.style import BLUE, INK, ORANGE, SKY, WIDTH, figure, new_figure, short
from headstart.runs.listing import Plain, Run, format_setting
from headstart.sweeps.seeds import SeedGroup
from headstart.utils.metrics import direction

SMALL_WIDTH = 3.6  # inches: fits three charts in a row, or one on a phone
MAX_TICKS = 6  # most different numbers that each get a tick label
MIN_GAP = 0.12  # between such ticks, as a fraction of the axis, so that labels do not overlap
MAX_ROWS = 25  # of a chart; of more, the best are shown
MAX_LEVELS = 12  # rows of a small chart
LOG_RATIO = 30  # ratio of largest to smallest value from which an axis is logarithmic
MAX_MEDIANS = 100  # losses are clipped at this many medians: a diverged one would compress all others
ALPHA = 0.7  # of dots that may overlap
CROSS: dict[str, Any] = {"s": 24, "color": INK, "marker": "x", "clip_on": False, "zorder": 3}  # marker of a failed job
Values = NDArray[np.float64]


# --- settings ------------------------------------------------------------------------------------------------


@figure
def by_setting(done: Sequence[Run], failed: Sequence[Run], name: str, metric: str) -> Figure:
    """Draw the metric of each job against a setting.

    Numbers are drawn along an axis, other values in rows with the best on top. Jobs without the setting are left out.
    Finished jobs come with the best first; failed jobs are crosses at the edge.
    """
    values = _clipped(done, metric)
    dots = [(run.settings[name], value) for run, value in zip(done, values, strict=True) if name in run.settings]
    crosses = [run.settings[name] for run in failed if name in run.settings]
    draw = _by_number if all(map(_is_number, [*(value for value, _ in dots), *crosses])) else _by_level
    return draw(dots, crosses, name, metric, has_best=name in done[0].settings)


def _by_number(
    dots: Sequence[tuple[Any, float]], crosses: Sequence[Any], name: str, metric: str, *, has_best: bool
) -> Figure:
    positions, values = (np.array(column, dtype=float) for column in zip(*dots, strict=True))
    levels = np.unique(np.append(positions, np.array(crosses, dtype=float)))
    drawn = new_figure(SMALL_WIDTH, 2.5)
    axes = drawn.subplots()
    axes.update_datalim([(level, values[0]) for level in levels])  # the limits include the crosses
    _scatter(axes, positions, values, has_best=has_best)
    if len(levels) <= MAX_TICKS:
        axes.scatter(*_medians(positions, values), s=220, color=INK, marker="_", linewidths=1.5)
    at_edge = blended_transform_factory(axes.transData, axes.transAxes)
    axes.scatter(crosses, [_worse_edge(metric)] * len(crosses), transform=at_edge, **CROSS)
    axes.set(title=short(name, 40), ylabel=short(metric, 30))
    axes.margins(x=0.08, y=0.1)
    _format_number_axis(axes.xaxis, levels)
    _format_metric_axis(axes.yaxis, values, metric)
    return drawn


def _by_level(
    dots: Sequence[tuple[Plain, float]], crosses: Sequence[Plain], name: str, metric: str, *, has_best: bool
) -> Figure:
    levels = list(dict.fromkeys(format_setting(value) for value in [*(value for value, _ in dots), *crosses]))
    rows = {level: -index for index, level in enumerate(levels[:MAX_LEVELS])}
    shown = [(rows[format_setting(level)], value) for level, value in dots if format_setting(level) in rows]
    positions, values = (np.array(column, dtype=float) for column in zip(*shown, strict=True))
    drawn = new_figure(SMALL_WIDTH, 0.95 + 0.26 * max(len(rows), 3))
    axes = drawn.subplots()
    _scatter(axes, values, positions, has_best=has_best)
    axes.scatter(*_medians(positions, values)[::-1], s=140, color=INK, marker="|", linewidths=1.5)
    at_edge = blended_transform_factory(axes.transAxes, axes.transData)
    failed = [rows[format_setting(level)] for level in crosses if format_setting(level) in rows]
    axes.scatter([_worse_edge(metric)] * len(failed), failed, transform=at_edge, **CROSS)
    axes.set_yticks(list(rows.values()), [short(level, 20) for level in rows], fontsize=8)
    title = short(name, 40) + (f", the {MAX_LEVELS} best of {len(levels)}" if len(levels) > MAX_LEVELS else "")
    axes.set(title=title, xlabel=short(metric, 40), ylim=(0.6 - max(len(rows), 3), 0.6))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    _format_metric_axis(axes.xaxis, values, metric)
    return drawn


def _scatter(axes: Axes, x: Values, y: Values, *, has_best: bool = False) -> None:
    """Draw the jobs, with the best one, which is the first, on top."""
    axes.scatter(x, y, s=26, color=BLUE, alpha=ALPHA, edgecolors="none")
    if has_best:
        axes.scatter(x[0], y[0], s=44, color=ORANGE, zorder=3, clip_on=False)


def _worse_edge(metric: str) -> float:
    """Return where jobs without a value are drawn, as a fraction of the axis."""
    return 0.97 if direction(metric) == "min" else 0.03


def _medians(positions: Values, values: Values) -> tuple[Values, Values]:
    """Return the positions that have several values, and the median of each."""
    levels, counts = np.unique(positions, return_counts=True)
    levels = levels[counts > 1]
    return levels, np.array([np.median(values[positions == level]) for level in levels])


def _is_number(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


# --- seeds ---------------------------------------------------------------------------------------------------


@figure
def by_seeds(groups: Sequence[tuple[str, SeedGroup]], metric: str) -> Figure:
    """Draw the mean over seeds of each group with its 95 % confidence interval, and the value of each seed.

    Groups come with their names, the best first.
    """
    shown = groups[:MAX_ROWS]
    title = f"the {MAX_ROWS} best of {len(groups)}" if len(groups) > len(shown) else "mean over seeds"
    drawn, axes, rows = _row_chart([name for name, _ in shown], title, 1.1 + 0.34 * len(shown))
    means = np.array([group.mean for _, group in shown])
    for row, (_, group) in zip(rows, shown, strict=True):
        axes.scatter(group.values, [row - 0.28] * len(group.values), s=18, color=SKY, alpha=ALPHA, edgecolors="none")
    bounds = np.array([group.interval or (group.mean, group.mean) for _, group in shown]).T
    axes.errorbar(means, rows, xerr=np.abs(bounds - means), fmt="o", color=BLUE, ecolor=INK, elinewidth=1, capsize=3)
    axes.set(xlabel=f"{short(metric, 40)}, with 95 % interval", ylim=(0.3 - len(shown), 0.5))
    if _is_fraction(metric):  # Student's t interval may exceed [0, 1]
        _format_percent_axis(axes.xaxis)
    elif direction(metric) == "min" and np.median(means) > 0:
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0.0), min(high, 5 * float(np.median(means))))
    return drawn


# --- a search ------------------------------------------------------------------------------------------------


@figure
def history(started: Sequence[Run], metric: str) -> Figure:
    """Draw the metric of a search's jobs in the order of their start, and the best value so far.

    Jobs without the metric leave a gap.
    """
    done = {number: run for number, run in enumerate(started, 1) if run.metrics.get(metric) is not None}
    numbers, values = np.array(list(done), dtype=float), _clipped(list(done.values()), metric)
    best = (np.minimum if direction(metric) == "min" else np.maximum).accumulate(values)
    drawn = new_figure(WIDTH, 2.9)
    axes = drawn.subplots()
    _scatter(axes, numbers, values)
    axes.step([*numbers, len(started)], [*best, best[-1]], where="post", color=ORANGE)
    axes.set(title="the search", xlabel="jobs in the order of their start", ylabel=short(metric, 40))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.08)
    _format_metric_axis(axes.yaxis, values, metric)
    return drawn


@figure
def importances(fractions: Mapping[str, float]) -> Figure:
    """Draw the fraction of the jobs' variance that each setting explains, the largest on top."""
    names = sorted(fractions, key=lambda name: -fractions[name])[:MAX_ROWS]
    values = [fractions[name] for name in names]
    drawn, axes, rows = _row_chart(names, "importance", max(1.6, 0.9 + 0.28 * len(names)))
    bars = axes.barh(rows, values, color=BLUE, alpha=0.75, height=0.7)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=3, fontsize=8)
    axes.set(xlabel="fraction of the variance explained", xlim=(0, 1.15 * max(values)))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return drawn


# --- axes ----------------------------------------------------------------------------------------------------


def _row_chart(names: Sequence[str], title: str, height: float) -> tuple[Figure, Axes, Values]:
    """Create a chart with a row for each name, from the top down, and return the rows' positions, too."""
    drawn = new_figure(WIDTH, height)
    axes, rows = drawn.subplots(), -np.arange(len(names), dtype=float)
    axes.set_yticks(rows, [short(name, 34) for name in names], fontsize=8)
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return drawn, axes, rows


def _is_fraction(metric: str) -> bool:
    return "accuracy" in metric


def _clipped(runs: Sequence[Run], metric: str) -> Values:
    """Return the metric of runs, with losses clipped at `MAX_MEDIANS` medians so that a diverged one is at the edge."""
    values = np.array([run.metrics[metric] for run in runs], dtype=float)
    median = float(np.median(values))
    return np.minimum(values, MAX_MEDIANS * median) if direction(metric) == "min" and median > 0 else values


def _format_metric_axis(axis: Axis, values: Values, metric: str) -> None:
    if _is_fraction(metric):
        _format_percent_axis(axis)
    elif direction(metric) == "min" and _is_wide(values):
        _set_log_scale(axis, values)
    else:
        axis.set_major_locator(MaxNLocator(5))


def _format_percent_axis(axis: Axis) -> None:
    """Format an axis as percentages, with limits that do not go far beyond 0 % and 100 %."""
    low, high = axis.get_view_interval()
    low, high = max(low, -0.03), min(high, 1 + 0.06 * (1 - min(low, 0.99)))
    (axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim)(low, high)
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(PercentFormatter(1))


def _format_number_axis(axis: Axis, levels: Values) -> None:
    """Set the scale and the ticks of an axis along a setting's values."""
    if _is_wide(levels):
        _set_log_scale(axis, levels)
    else:
        axis.set_major_locator(MaxNLocator(5))
    positions = np.log(levels) if _is_wide(levels) else levels
    if len(levels) <= MAX_TICKS and np.all(np.diff(positions) > MIN_GAP * np.ptp(positions)):
        axis.set_ticks(levels, [f"{level:g}" for level in levels])


def _is_wide(values: Values) -> bool:
    return bool(values.min() > 0 and values.max() >= LOG_RATIO * values.min())


def _set_log_scale(axis: Axis, values: Values) -> None:
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    decades = np.log10(values.max() / values.min())
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 2 else (1.0,), numticks=6))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
