"""Charts of a comparison of backbones: accuracy against speed, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from headstart.advice.result import Advice, Measured
from headstart.advice.table import format_rate, label
from headstart.report.style import BLUE, CYCLE, INK, ORANGE, WIDTH, figure, new_figure

# Accuracies below all that may be best by so many times their range are drawn at the lower edge: the others have room.
FLOOR = 2
LEAST_DEPTH = 0.05  # but not if they are closer than this
NAMED_CURVES = 5  # most learning curves with a name and an interval
APART = 0.03  # distance of two of them, as a fraction of the number of images
# Where the name of a point may stand, in typographic points from it: the first that is free is taken, from the nearest.
OFFSETS = sorted(
    product((7, -7, 22, -22, 44, -44), (0, 10, -10, 20, -20, 32, -32, 46, -46, 62, -62, 80, -80)),
    key=lambda offset: (np.hypot(*offset), offset[0] < 0),
)
NEAR = 13  # a name that is farther away has a line to its point
LABEL_SIZE = 7.5


@figure
def accuracy_by_speed(advice: Advice) -> Figure:
    """Draw the accuracy of each backbone, with its 95 % interval, against the images a second that it computes.

    The recommended one is orange, those that may be best are blue.
    """
    ordered = sorted(  # names are written in this order, while there is room
        advice.measured,
        key=lambda measured: (measured.candidate.name != _recommended(advice), not measured.may_be_best),
    )
    floor = _floor(advice)
    fig = new_figure(WIDTH, 4.2)
    axes = fig.subplots()
    axes.set_xscale("log")
    points = [(measured.rate, max(measured.accuracy.value, floor)) for measured in ordered]
    for measured, (rate, accuracy) in zip(ordered, points, strict=True):
        below = measured.accuracy.value < floor
        axes.plot(rate, accuracy, marker="v" if below else "o", markersize=6, **_look(measured, advice))
        if not below:
            interval = (max(measured.accuracy.low, floor), measured.accuracy.high)
            axes.vlines(rate, *interval, linewidth=1.2, **_look(measured, advice))
    axes.set(
        xlabel="images a second on this machine, without decoding",
        ylabel="accuracy in the sample",
        title="accuracy and speed",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda rate, _: format_rate(rate))
    axes.xaxis.set_minor_locator(NullLocator())
    logs = [np.log10(rate) for rate, _ in points]
    margin = max(0.2 * (max(logs) - min(logs)), 0.3)  # for the names
    axes.set_xlim(10 ** (min(logs) - margin), 10 ** (max(logs) + margin))
    axes.margins(y=0.1)
    _legend(fig, advice)
    _name_points(fig, axes, [_point_name(measured, floor) for measured in ordered], points, ordered)
    return fig


def _floor(advice: Advice) -> float:
    tied = [measured.accuracy for measured in advice.measured if measured.may_be_best] or [advice.recommended.accuracy]
    low, high = min(estimate.low for estimate in tied), max(estimate.high for estimate in tied)
    return max(0.0, low - max(FLOOR * (high - low), LEAST_DEPTH))


def _point_name(measured: Measured, floor: float) -> str:
    name = label(measured.candidate.name)
    return name if measured.accuracy.value >= floor else f"{name}: {measured.accuracy.value:.0%}"


def _recommended(advice: Advice) -> str:
    return advice.recommended.candidate.name


def _look(measured: Measured, advice: Advice) -> dict[str, Any]:
    if measured.candidate.name == _recommended(advice):
        return {"color": ORANGE, "zorder": 4}
    return {"color": BLUE, "zorder": 3} if measured.may_be_best else {"color": INK, "alpha": 0.45, "zorder": 2}


def _legend(fig: Figure, advice: Advice) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [("recommended", {"color": ORANGE})]
    others = [measured for measured in advice.measured if measured.candidate.name != _recommended(advice)]
    if any(measured.may_be_best for measured in others):
        kinds.append(("may be best", {"color": BLUE}))
    if not all(measured.may_be_best for measured in others):
        kinds.append(("clearly worse", {"color": INK, "alpha": 0.45}))
    dots = [Line2D([], [], marker="o", linestyle="", label=name, **look) for name, look in kinds]
    fig.legend(handles=dots, loc="outside lower center", ncols=3, fontsize=8)


# --- labels --------------------------------------------------------------------------------------------------


def _name_points(
    fig: Figure, axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]], measured: Sequence[Measured]
) -> None:
    """Write each name beside its point where nothing else is; a name for which there is no room is left out."""
    fig.draw_without_rendering()  # the layout decides where the points are
    frame, pixels = axes.get_window_extent(), fig.dpi / 72  # pixels of a typographic point
    dots: list[Bbox] = []
    bars: list[Bbox] = []
    written: list[Bbox] = []
    for one, (rate, accuracy) in zip(measured, points, strict=True):
        x, y = axes.transData.transform((rate, accuracy))
        (_, low), (_, high) = axes.transData.transform([(rate, one.accuracy.low), (rate, one.accuracy.high)])
        dots.append(Bbox.from_extents(x - 6, y - 6, x + 6, y + 6))
        bars.append(Bbox.from_extents(x - 2, low, x + 2, high))
    for name, point in zip(names, points, strict=True):
        text = fig.text(0, 0, name, fontsize=LABEL_SIZE)
        size = text.get_window_extent()
        text.remove()
        origin = axes.transData.transform(point)
        for offset in OFFSETS:
            x, y = origin + np.multiply(offset, pixels)
            left = x if offset[0] > 0 else x - size.width
            box = Bbox.from_bounds(left - 1, y - size.height / 2, size.width + 2, size.height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if not inside or box.count_overlaps([*dots, *bars, *written]):
                continue
            line = _along(origin, (x, y)) if np.hypot(*offset) > NEAR else []
            if not any(place.count_overlaps([*dots, *written]) for place in line):
                written += [box, *line]
                _write(axes, name, point, offset)
                break


def _along(start: NDArray[np.float64], end: tuple[float, float]) -> list[Bbox]:
    """Return small boxes along a line, in pixels, but for the first ones, which its own point covers."""
    places = start + np.linspace(0, 1, 25)[:, None] * (np.array(end) - start)
    return [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in places if np.hypot(*(x, y) - start) > 9]


def _write(axes: Axes, name: str, point: tuple[float, float], offset: tuple[float, float]) -> None:
    """Write a name at an offset from its point, in points; with a line to it, if it is far."""
    line = {"arrowstyle": "-", "linewidth": 0.6, "color": INK, "alpha": 0.5} if np.hypot(*offset) > NEAR else None
    side = "left" if offset[0] > 0 else "right"
    axes.annotate(
        *(name, point, offset),
        textcoords="offset points",
        fontsize=LABEL_SIZE,
        horizontalalignment=side,
        verticalalignment="center",
        arrowprops=line,
    )


# --- learning curves -----------------------------------------------------------------------------------------


@figure
def learning_curves(advice: Advice) -> Figure:
    """Draw accuracy by the number of images that a head is fitted to, with 95 % intervals.

    What is extrapolated beyond the sample is dashed, and its end is a hollow circle. Backbones that are clearly worse
    are pale, and may leave the chart below.
    """
    fig = new_figure(WIDTH, 4.2)
    axes = fig.subplots()
    axes.set_xscale("log")
    named = _with_names(advice)
    low = min(estimate.low for measured in named for _, estimate in measured.curve)
    high = max(estimate.high for measured in named for _, estimate in measured.curve)
    for measured in advice.measured:
        if measured not in named and measured.curve:
            _plot_curve(axes, measured, 1, color=INK, alpha=0.3, linewidth=1)
    others = iter(colour for colour in CYCLE if colour != ORANGE)
    for number, measured in enumerate(named):
        # Side by side, so that the intervals of one size do not hide each other.
        shift = 1 + APART * (number - (len(named) - 1) / 2)
        colour = ORANGE if number == 0 else next(others)
        _plot_curve(axes, measured, shift, color=colour, label=label(measured.candidate.name))
        for count, estimate in measured.curve:
            axes.vlines(shift * count, estimate.low, estimate.high, color=colour, linewidth=1.2, alpha=0.7)
    margin = max(0.05 * (high - low), 0.005)
    axes.set_ylim(low - margin, high + margin)
    counts = sorted({count for measured in named for count, _ in measured.curve})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="images that the head is fitted to", ylabel="accuracy", title="learning curves")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    fig.legend(loc="outside lower center", ncols=2, fontsize=8)
    return fig


def has_curves(advice: Advice) -> bool:
    """Return whether the recommended backbone has a learning curve of two sizes at least."""
    return len(advice.recommended.curve) > 1


def _with_names(advice: Advice) -> list[Measured]:
    """Return the recommended backbone, and the most accurate others that may be best and have curves."""
    others = [
        measured
        for measured in advice.measured
        if measured.may_be_best and measured.candidate.name != _recommended(advice) and len(measured.curve) > 1
    ]
    return [advice.recommended, *others[: NAMED_CURVES - 1]]


def _plot_curve(axes: Axes, measured: Measured, shift: float, **look: Any) -> None:
    """Draw a curve: what was measured as a line with dots, what is extrapolated as a dashed one."""
    points = [(shift * count, estimate.value) for count, estimate in measured.curve]
    known = points[: sum(count <= measured.images for count, _ in measured.curve)]
    beyond = points[len(known) :]
    if known:
        axes.plot(*zip(*known, strict=True), marker="o", markersize=4, **look)
    if beyond:
        look.pop("label", None)
        axes.plot(*zip(*known[-1:], *beyond, strict=True), linestyle="--", **look)
        axes.plot(*zip(*beyond, strict=True), linestyle="", marker="o", markersize=5, markerfacecolor="none", **look)
