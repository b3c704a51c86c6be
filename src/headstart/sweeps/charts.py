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
from headstart.sweeps.seeds import Repeated
from headstart.utils.metrics import direction

SMALL = 3.6  # inches: fits three charts in a row, or one on a phone
FEW = 6  # most different numbers that each get a tick label
CLEAR = 0.12  # least distance between such ticks, as a fraction of the axis, so that labels do not overlap
ROWS = 25  # most rows of a chart; of more, the best are shown
LEVELS = 12  # most rows of a small chart
WIDE = 30  # ratio of largest to smallest value from which an axis is logarithmic
FAR = 100  # losses are clipped at this many medians: a diverged one would compress all others
DIM = 0.7  # alpha of dots that may overlap
CROSS: dict[str, Any] = {"s": 24, "color": INK, "marker": "x", "clip_on": False, "zorder": 3}  # marker of a failed job
Values = NDArray[np.float64]


# --- settings ------------------------------------------------------------------------------------------------


@figure
def by_setting(done: Sequence[Run], failed: Sequence[Run], name: str, metric: str) -> Figure:
    """Draw the metric of each job against a setting.

    Numbers are drawn along an axis, other values in rows with the best on top.

    Args:
        done: jobs that have the metric, the best first.
        failed: jobs without the metric, drawn as crosses at the edge.
        name: the setting; jobs without it are left out.
        metric: the metric's name.
    """
    values = _within_sight([_value(run, metric) for run in done], metric)
    dots = [(run.settings[name], value) for run, value in zip(done, values, strict=True) if name in run.settings]
    crosses = [run.settings[name] for run in failed if name in run.settings]
    has_best = name in done[0].settings
    if all(_is_number(value) for value in [*(value for value, _ in dots), *crosses]):
        return _numbers(dots, crosses, name, metric, has_best=has_best)
    return _rows(dots, crosses, name, metric, has_best=has_best)


def _numbers(
    dots: Sequence[tuple[Any, float]], crosses: Sequence[Any], name: str, metric: str, *, has_best: bool
) -> Figure:
    places, values = (np.array(column, dtype=float) for column in zip(*dots, strict=True))
    levels = np.unique(np.append(places, np.array(crosses, dtype=float)))
    drawn = new_figure(SMALL, 2.5)
    axes = drawn.subplots()
    axes.update_datalim([(level, values[0]) for level in levels])  # the limits include the crosses
    _dots(axes, places, values, has_best=has_best)
    if len(levels) <= FEW:
        axes.scatter(*_medians(places, values), s=220, color=INK, marker="_", linewidths=1.5)
    at_edge = blended_transform_factory(axes.transData, axes.transAxes)
    axes.scatter(crosses, [_worse_edge(metric)] * len(crosses), transform=at_edge, **CROSS)
    axes.set(title=short(name, 40), ylabel=short(metric, 30))
    axes.margins(x=0.08, y=0.1)
    _number_axis(axes.xaxis, levels)
    _metric_axis(axes.yaxis, values, metric)
    return drawn


def _rows(
    dots: Sequence[tuple[Plain, float]], crosses: Sequence[Plain], name: str, metric: str, *, has_best: bool
) -> Figure:
    levels = list(dict.fromkeys(format_setting(value) for value in [*(value for value, _ in dots), *crosses]))
    row = {level: -place for place, level in enumerate(levels[:LEVELS])}
    shown = [(row[format_setting(level)], value) for level, value in dots if format_setting(level) in row]
    places, values = (np.array(column, dtype=float) for column in zip(*shown, strict=True))
    drawn = new_figure(SMALL, 0.95 + 0.26 * max(len(row), 3))
    axes = drawn.subplots()
    _dots(axes, values, places, has_best=has_best)
    axes.scatter(*_medians(places, values)[::-1], s=140, color=INK, marker="|", linewidths=1.5)
    at_edge = blended_transform_factory(axes.transAxes, axes.transData)
    lost = [row[format_setting(level)] for level in crosses if format_setting(level) in row]
    axes.scatter([_worse_edge(metric)] * len(lost), lost, transform=at_edge, **CROSS)
    axes.set_yticks(list(row.values()), [short(level, 20) for level in row], fontsize=8)
    title = short(name, 40) + (f", the {LEVELS} best of {len(levels)}" if len(levels) > LEVELS else "")
    axes.set(title=title, xlabel=short(metric, 40), ylim=(0.6 - max(len(row), 3), 0.6))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    _metric_axis(axes.xaxis, values, metric)
    return drawn


def _dots(axes: Axes, x: Values, y: Values, *, has_best: bool) -> None:
    """Draw the jobs, with the best one, which is the first, on top."""
    axes.scatter(x, y, s=26, color=BLUE, alpha=DIM, edgecolors="none")
    if has_best:
        axes.scatter(x[0], y[0], s=44, color=ORANGE, zorder=3, clip_on=False)


def _worse_edge(metric: str) -> float:
    """Return where jobs without a value are drawn, as a fraction of the axis."""
    return 0.97 if direction(metric) == "min" else 0.03


def _medians(places: Values, values: Values) -> tuple[Values, Values]:
    """Return the positions that have several values, and the median of each."""
    levels, counts = np.unique(places, return_counts=True)
    levels = levels[counts > 1]
    return levels, np.array([np.median(values[places == level]) for level in levels])


def _is_number(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


# --- seeds ---------------------------------------------------------------------------------------------------


@figure
def by_seeds(groups: Sequence[tuple[str, Repeated]], metric: str) -> Figure:
    """Draw the mean over seeds of each group with its 95 % confidence interval, and the value of each seed.

    Args:
        groups: names and groups of runs that differ in their seeds alone, the best first.
        metric: the metric's name.
    """
    shown = groups[:ROWS]
    drawn = new_figure(WIDTH, 1.1 + 0.34 * len(shown))
    axes = drawn.subplots()
    means = np.array([group.mean for _, group in shown])
    for row, (_, group) in enumerate(shown):
        axes.scatter(group.values, [-row - 0.28] * len(group.values), s=18, color=SKY, alpha=DIM, edgecolors="none")
    rows = -np.arange(len(shown))
    bounds = np.array([group.interval or (group.mean, group.mean) for _, group in shown]).T
    axes.errorbar(means, rows, xerr=np.abs(bounds - means), fmt="o", color=BLUE, ecolor=INK, elinewidth=1, capsize=3)
    axes.set_yticks(rows, [short(name, 34) for name, _ in shown], fontsize=8)
    title = f"the {ROWS} best of {len(groups)}" if len(groups) > len(shown) else "mean over seeds"
    axes.set(title=title, xlabel=f"{short(metric, 40)}, with 95 % interval", ylim=(0.3 - len(shown), 0.5))
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if _is_share(metric):  # Student's t interval may exceed [0, 1]
        _share_axis(axes.xaxis)
    elif direction(metric) == "min" and np.median(means) > 0:
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, 0.0), min(right, 5 * float(np.median(means))))
    return drawn


# --- a search ------------------------------------------------------------------------------------------------


@figure
def history(started: Sequence[Run], metric: str) -> Figure:
    """Draw the metric of a search's jobs in the order of their start, and the best value so far.

    Args:
        started: the jobs in that order; those without the metric leave a gap.
        metric: the metric's name.
    """
    numbers = np.array([number for number, run in enumerate(started, 1) if run.metrics.get(metric) is not None])
    values = _within_sight([_value(run, metric) for run in started if run.metrics.get(metric) is not None], metric)
    best = (np.minimum if direction(metric) == "min" else np.maximum).accumulate(values)
    drawn = new_figure(WIDTH, 2.9)
    axes = drawn.subplots()
    axes.scatter(numbers, values, s=26, color=BLUE, alpha=DIM, edgecolors="none")
    axes.step([*numbers, len(started)], [*best, best[-1]], where="post", color=ORANGE)
    axes.set(title="the search", xlabel="jobs in the order of their start", ylabel=short(metric, 40))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.08)
    _metric_axis(axes.yaxis, values, metric)
    return drawn


@figure
def importances(shares: Mapping[str, float]) -> Figure:
    """Draw the fraction of the jobs' variance that each setting explains, the largest on top."""
    shown = sorted(shares.items(), key=lambda pair: -pair[1])[:ROWS]
    drawn = new_figure(WIDTH, max(1.6, 0.9 + 0.28 * len(shown)))
    axes = drawn.subplots()
    rows = -np.arange(len(shown))
    bars = axes.barh(rows, [share for _, share in shown], color=BLUE, alpha=0.75, height=0.7)
    axes.bar_label(bars, [f"{share:.0%}" for _, share in shown], padding=3, fontsize=8)
    axes.set_yticks(rows, [short(name, 34) for name, _ in shown], fontsize=8)
    axes.set(title="importance", xlabel="share of the differences", xlim=(0, 1.15 * max(share for _, share in shown)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    return drawn


# --- axes ----------------------------------------------------------------------------------------------------


def _value(run: Run, metric: str) -> float:
    value = run.metrics[metric]
    assert value is not None
    return value


def _is_share(metric: str) -> bool:
    return "accuracy" in metric


def _within_sight(values: Sequence[float], metric: str) -> Values:
    """Return the values to draw, with losses clipped at `FAR` medians so that a diverged one stays at the edge."""
    found = np.array(values, dtype=float)
    middle = float(np.median(found))
    return np.minimum(found, FAR * middle) if direction(metric) == "min" and middle > 0 else found


def _metric_axis(axis: Axis, values: Values, metric: str) -> None:
    if _is_share(metric):
        _share_axis(axis)
    elif direction(metric) == "min" and _wide(values):
        _logarithmic(axis, values)
    else:
        axis.set_major_locator(MaxNLocator(5))


def _share_axis(axis: Axis) -> None:
    """Format an axis as percentages, with limits that do not go far beyond 0 % and 100 %."""
    low, high = axis.get_view_interval()
    low, high = max(low, -0.03), min(high, 1 + 0.06 * (1 - min(low, 0.99)))
    (axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim)(low, high)
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(PercentFormatter(1))


def _number_axis(axis: Axis, levels: Values) -> None:
    """Set the scale and the ticks of an axis along a setting's values."""
    if _wide(levels):
        _logarithmic(axis, levels)
    else:
        axis.set_major_locator(MaxNLocator(5))
    places = np.log(levels) if _wide(levels) else levels
    if len(levels) <= FEW and np.all(np.diff(places) > CLEAR * np.ptp(places)):
        axis.set_ticks(levels, [f"{level:g}" for level in levels])


def _wide(values: Values) -> bool:
    return bool(values.min() > 0 and values.max() >= WIDE * values.min())


def _logarithmic(axis: Axis, values: Values) -> None:
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    decades = np.log10(values.max() / values.min())
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 2 else (1.0,), numticks=6))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
