"""Charts of a trained classifier: learning curves, confusion matrix, accuracy by class, reliability diagram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from headstart.report.statistics import BINS, calibration_error, wilson
from headstart.report.style import (
    BLUE,
    INK,
    ORANGE,
    SKY,
    SPLIT_COLOURS,
    WIDTH,
    count_axis,
    figure,
    new_figure,
    row_axes,
    short,
)
from headstart.runs.finished import Curves

Line = tuple[str, Sequence[tuple[float, float]], dict[str, Any]]  # label, points, and matplotlib's properties
NUMBERED = 12  # most classes for which a confusion matrix shows its counts
NAMED = 40  # most classes for which an axis labels each of them
PAIRS = 15  # most confused pairs shown
LISTED = 4  # most learning rates that the legend lists completely
HARDEST = 30  # classes shown if there are more than `NAMED`


def plot_curves(axes: Axes, lines: Iterable[Line], metric: str) -> None:
    """Plot curves of a metric by epoch; a line without points is left out."""
    for label, points, properties in lines:
        if points:
            marker = "o" if len(points) < 15 else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3.5, **properties)
    axes.set(xlabel="epoch", ylabel=metric, title=f"{metric} by epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if "accuracy" in metric:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


@figure
def curve(curves: Curves, kind: str, *, best: float | None = None, stopped: bool = False) -> Figure:
    """Draw a metric of all splits, or the learning rate, by epoch.

    Args:
        curves: the scalars that the run logged: (epoch, value) pairs by name.
        kind: a metric such as "loss", for `train/loss`, `val/loss` and `test/loss`; or "learning_rate", for the rate of
            each parameter group.
        best: the epoch of the best checkpoint, which is marked.
        stopped: whether early stopping ended the run, which is marked, too.
    """
    fig = new_figure(WIDTH, 2.9)
    axes = fig.subplots()
    rates = kind == "learning_rate"
    lines = _rate_lines(curves) if rates else []
    for split, colour in () if rates else SPLIT_COLOURS.items():
        lines.append((split, curves.get(f"{split}/{kind}", ()), {"color": colour}))
    epochs = [epoch for label, points, _ in lines for epoch, _ in points if label != "test"] or [1.0]
    last = max(epochs)
    best = best if best and min(epochs) <= best <= last else None  # a resumed run lacks the first epochs
    if not rates and lines[-1][1]:  # the test split is evaluated once, with the best checkpoint
        label, points, properties = lines[-1]
        lines[-1] = label, [(best or last, points[-1][1])], properties
    plot_curves(axes, lines, kind.replace("_", " "))
    for epoch, label, style in ((best, "best checkpoint", "--"), (last if stopped else None, "stopped early", ":")):
        if epoch is not None:
            axes.axvline(epoch, color=INK, linewidth=1, linestyle=style, alpha=0.6, label=label)
    if rates:
        values = [value for _, points, _ in lines for _, value in points]
        if values and 0 < 2 * min(values) < max(values):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        fig.legend(loc="outside lower center", ncols=3, fontsize=8)  # no corner is sure to be free
    else:
        axes.legend(fontsize=8)
    return fig


def _rate_lines(curves: Curves) -> list[Line]:
    """Return the learning rate of each parameter group, paler from the head down.

    If there are more than `LISTED` groups, the legend has only the first and the last one.
    """
    # Groups without weight decay have the same learning rate as those with it.
    names = [name for name in curves if name.startswith("lr-") and not name.endswith(", no decay")]
    lines: list[Line] = []
    for number, name in enumerate(names):
        listed = len(names) <= LISTED or number in (0, len(names) - 1)
        label = name.removeprefix("lr-") if listed else f"_{name}"  # matplotlib omits labels that begin with _
        lines.append((label, curves[name], {"color": to_rgba(BLUE, 1 - 0.75 * number / max(1, len(names) - 1))}))
    return lines


@figure
def lr_range(steps: NDArray[np.float64], lr: float) -> Figure:
    """Draw the loss of a learning rate range test against the learning rate.

    Args:
        steps: learning rate, loss and smoothed loss, shape (steps, 3).
        lr: the learning rate that was chosen, which is marked.
    """
    rates, losses, smoothed = steps.T
    fig = new_figure(WIDTH, 2.9)
    axes = fig.subplots()
    axes.scatter(rates, losses, s=9, color=SKY, edgecolors="none", label="one batch")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    axes.axvline(lr, color=ORANGE, linewidth=1.4, linestyle="--", label=f"chosen: {lr:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="learning rate range test")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    # The diverged end of the test would compress the rest of the curve.
    top = max(1.5 * float(np.median(losses[:10])), 1.1 * float(smoothed[: smoothed.argmin() + 1].max()))
    axes.set_ylim(-0.04 * top, top)
    axes.legend(fontsize=8)
    return fig


# --- evaluation ----------------------------------------------------------------------------------------------


@figure
def confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, with counts if there are at most `NUMBERED` classes.

    Args:
        matrix: number of images by true class (rows) and predicted class (columns), shape (classes, classes).
        class_names: class names in label order.
    """
    names = [short(name, 16) for name in class_names] if len(class_names) <= NAMED else []
    side, margin = min(max(1.9, 0.42 * len(class_names)), 5.6), 0.07 * max(map(len, names), default=0)
    fig = new_figure(side + margin + 1.7, side + margin + 0.8)
    axes = fig.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class", title="confusion matrix; colours: % of the true class")
    bar = fig.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(1))
    bar.outline.set_visible(False)
    few = len(class_names) <= NUMBERED
    if names:
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
        axes.set_xticks(range(len(names)), names, fontsize=8, **turned)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    for (row, column), count in np.ndenumerate(matrix) if few else ():
        colour = "#ffffff" if fractions[row, column] > 0.55 else "#000000"
        axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    return fig


@figure
def most_confused(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw the most frequently confused pairs of classes in a confusion matrix as bars."""
    pairs = confused_pairs(matrix, class_names)
    fig, axes, rows = row_axes([f"{short(true, 18)} → {short(predicted, 18)}" for true, predicted, _ in pairs])
    bars = axes.barh(rows, [count for _, _, count in pairs], color=ORANGE, height=0.7)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set(title="most confused: true → predicted class" if pairs else "no class is confused", xlabel="images")
    axes.margins(x=0.1)
    count_axis(axes.xaxis)
    return fig


def confused_pairs(matrix: NDArray[np.int64], class_names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the most confused pairs as (true class, predicted class, images), the most frequent first."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(index), len(matrix)) for index in order]
    return [
        (class_names[row], class_names[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]
    ]


@figure
def class_accuracy(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw the accuracy of each class in a confusion matrix with its 95 % confidence interval, the lowest first.

    Classes without images are left out.
    """
    correct, images = matrix.diagonal(), matrix.sum(axis=1)
    present = np.flatnonzero(images)
    order = present[np.argsort(correct[present] / images[present], kind="stable")]
    shown = order if len(order) <= NAMED else order[:HARDEST]
    fig, axes, rows = row_axes([f"{short(class_names[index])}  ({images[index]:,})" for index in shown])
    accuracies = correct[shown] / images[shown]
    bounds = np.array([wilson(int(correct[index]), int(images[index])) for index in shown])
    errors = np.abs(bounds.T - accuracies)
    axes.barh(rows, accuracies, color=BLUE, alpha=0.75, height=0.72)
    axes.errorbar(accuracies, rows, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2, alpha=0.7)
    title = f"the {len(shown)} hardest of {len(order)} classes" if len(shown) < len(order) else "accuracy by class"
    axes.set(xlim=(0, 1.02), xlabel="accuracy with 95 % confidence interval (images)", title=title)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return fig


@figure
def accuracy_by_size(train_counts: NDArray[np.int64], matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw the accuracy of each class against the number of its training images, with the hardest classes labelled.

    Args:
        train_counts: number of training images of each class, shape (classes,).
        matrix: the confusion matrix; classes without images are left out.
        class_names: class names in label order.
    """
    present = np.flatnonzero(matrix.sum(axis=1))
    sizes, accuracies = train_counts[present], (matrix.diagonal() / np.maximum(matrix.sum(axis=1), 1))[present]
    fig = new_figure(WIDTH, 3.6)
    axes = fig.subplots()
    axes.scatter(sizes, accuracies, s=36, color=BLUE, alpha=0.65, edgecolors="none")
    log = sizes.max() > 10 * max(sizes.min(), 1)
    if log:
        axes.set_xscale("log")
    x = np.log(np.maximum(sizes, 1)) if log else sizes.astype(float)
    x = (x - x.min()) / max(np.ptp(x), 1e-9)
    labelled: list[int] = []
    near = 0.06 * (1 - min(0.9, accuracies.min()))
    for index in map(int, np.argsort(accuracies, kind="stable")[:NAMED]):
        # Labels that would overlap are left out.
        clear = all(abs(accuracies[index] - accuracies[k]) > near or abs(x[index] - x[k]) > 0.45 for k in labelled)
        if clear and len(labelled) < 8:
            labelled.append(index)
            at, right = (float(sizes[index]), float(accuracies[index])), x[index] > 0.5
            name, offset = short(class_names[present[index]], 18), (-7 if right else 7, -3)
            axes.annotate(name, at, offset, textcoords="offset points", ha="right" if right else "left", fontsize=8)
    axes.set(xlabel="training images of the class", ylabel="accuracy", title="accuracy by size of the class")
    low = max(-0.03, min(0.9, accuracies.min() - 0.08))
    axes.set_ylim(low, 1 + 0.04 * (1 - low))
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, 1) if low <= tick < 1.001]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if log:
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        count_axis(axes.xaxis, 5)
    axes.margins(x=0.12)
    return fig


@figure
def reliability(logits: Tensor, labels: NDArray[np.int64], temperature: float) -> Figure:
    """Draw a reliability diagram and a histogram of confidence, before and after temperature scaling.

    Args:
        logits: shape (N, classes).
        labels: int64, shape (N,).
        temperature: the divisor of the logits before the softmax.
    """
    fig = new_figure(WIDTH, 3.9)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=":", label="perfectly calibrated")
    edges = np.linspace(0, 1, BINS + 1)
    kinds = [("uncalibrated", 1.0, ORANGE)]
    if temperature != 1:
        kinds.append((f"temperature {temperature:.2f}", temperature, BLUE))
    for name, divisor, colour in kinds:
        confidence, predicted = (logits / divisor).softmax(dim=1).max(dim=1)
        correct = predicted.numpy() == labels
        bins = np.clip(np.digitize(confidence.numpy(), edges, right=True) - 1, 0, BINS - 1)
        counts = np.bincount(bins, minlength=BINS)
        filled = counts > 0
        centres = np.bincount(bins, confidence.numpy(), BINS)[filled] / counts[filled]
        accuracies = np.bincount(bins, correct, BINS)[filled] / counts[filled]
        error = calibration_error(logits / divisor, labels)
        upper.plot(centres, accuracies, color=colour, linewidth=1.2, label=f"{name}: ECE {error:.3f}")
        # The area of a point shows its number of images, because a few say little about accuracy.
        areas = 8 + 160 * counts[filled] / len(labels)
        upper.scatter(centres, accuracies, s=areas, color=colour, alpha=0.7, clip_on=False)
        lower.stairs(counts / len(labels), edges, color=colour, fill=True, alpha=0.35)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.03))
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    fig.legend(loc="outside upper left", fontsize=8)
    return fig
