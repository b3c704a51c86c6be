"""Charts of a trained classifier: learning curves, confusion matrix, accuracy by class, reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from headstart.report.statistics import BINS, calibration_error, wilson
from headstart.report.style import BLUE, INK, ORANGE, SKY, SPLIT_COLOURS, figure, new_figure, short
from headstart.runs.finished import Curves

Colour = str | tuple[float, float, float, float] | None
NUMBERED = 12  # most classes for which a confusion matrix shows its counts
NAMED = 40  # most classes for which an axis labels each of them
WIDTH = 5.2  # inches: text stays readable on a phone
PAIRS = 15  # most confused pairs shown
LISTED = 4  # most learning rates that the legend lists completely
HARDEST = 30  # classes shown if there are more than `NAMED`


@figure
def curve(found: Curves, kind: str, *, best: float | None = None, stopped: bool = False) -> Figure:
    """Draw a metric of all splits, or the learning rate, by epoch.

    Args:
        found: the scalars that the run logged: (epoch, value) pairs by name.
        kind: a metric such as "loss", for `train/loss`, `val/loss` and `test/loss`; or "learning_rate", for the rate of
            each parameter group.
        best: the epoch of the best checkpoint, which is marked.
        stopped: whether early stopping ended the run, which is marked, too.
    """
    drawn = new_figure(WIDTH, 2.9)
    axes = drawn.subplots()
    lines: Mapping[str, tuple[Sequence[tuple[float, float]], Colour]]
    if kind == "learning_rate":
        lines = _rates(found)
        values = [value for points, _ in lines.values() for _, value in points]
        if values and 0 < 2 * min(values) < max(values):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        lines = {split: (found.get(f"{split}/{kind}", ()), colour) for split, colour in SPLIT_COLOURS.items()}
    epochs = [epoch for name, (points, _) in lines.items() for epoch, _ in points if name != "test"] or [1.0]
    last = max(epochs)
    best = best if best and min(epochs) <= best <= last else None  # a resumed run lacks the first epochs
    for name, (points, colour) in lines.items():
        # The test split is evaluated with the best checkpoint.
        _line(axes, [(best or last, points[-1][1])] if points and name == "test" else points, colour, name)
    _mark(axes, best, "best checkpoint", "--")
    _mark(axes, last if stopped else None, "stopped early", ":")
    name = kind.replace("_", " ")
    axes.set(xlabel="epoch", ylabel=name, title=f"{name} by epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if "accuracy" in kind:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if kind == "learning_rate":  # no corner is sure to be free
        drawn.legend(loc="outside lower center", ncols=3, fontsize=8)
    else:
        axes.legend(fontsize=8)
    return drawn


def _rates(found: Curves) -> dict[str, tuple[Sequence[tuple[float, float]], Colour]]:
    """Return the learning rate of each parameter group with its colour, paler from the head down.

    If there are more than `LISTED` groups, the legend has only the first and the last one.
    """
    # Groups without weight decay have the same learning rate as those with it.
    names = [name for name in found if name.startswith("lr-") and not name.endswith(", no decay")]
    lines: dict[str, tuple[Sequence[tuple[float, float]], Colour]] = {}
    for number, name in enumerate(names):
        told = len(names) <= LISTED or number in (0, len(names) - 1)
        label = name.removeprefix("lr-") if told else f"_{name}"  # matplotlib omits labels that begin with _
        lines[label] = found[name], to_rgba(BLUE, 1 - 0.75 * number / max(1, len(names) - 1))
    return lines


def _line(axes: Axes, points: Sequence[tuple[float, float]], colour: Colour, label: str) -> None:
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=colour, label=label, marker="o" if len(points) < 15 else None, markersize=3.5)


def _mark(axes: Axes, epoch: float | None, label: str, style: str) -> None:
    if epoch is not None:
        axes.axvline(epoch, color=INK, linewidth=1, linestyle=style, alpha=0.6, label=label)


@figure
def lr_range(steps: NDArray[np.float64], lr: float) -> Figure:
    """Draw the loss of a learning rate range test against the learning rate.

    Args:
        steps: learning rate, loss and smoothed loss, shape (steps, 3).
        lr: the learning rate that was chosen, which is marked.
    """
    rates, losses, smoothed = steps.T
    drawn = new_figure(WIDTH, 2.9)
    axes = drawn.subplots()
    axes.scatter(rates, losses, s=9, color=SKY, edgecolors="none", label="a batch")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    axes.axvline(lr, color=ORANGE, linewidth=1.4, linestyle="--", label=f"taken: {lr:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="loss by learning rate")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    # The diverged end of the test would compress the rest of the curve.
    top = max(1.5 * float(np.median(losses[:10])), 1.1 * float(smoothed[: smoothed.argmin() + 1].max()))
    axes.set_ylim(-0.04 * top, top)
    axes.legend(fontsize=8)
    return drawn


@figure
def confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, with counts if there are at most `NUMBERED` classes.

    Args:
        matrix: number of images by true class (rows) and predicted class (columns), shape (classes, classes).
        class_names: class names in label order.
    """
    named = [short(name, 16) for name in class_names] if len(class_names) <= NAMED else [""]
    side, labels = min(max(1.9, 0.42 * len(class_names)), 5.6), 0.07 * max(map(len, named))
    drawn = new_figure(side + labels + 1.7, side + labels + 0.8)
    _matrix(drawn.subplots(), matrix, class_names)
    return drawn


@figure
def most_confused(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw the most frequently confused pairs of classes as bars.

    Args:
        matrix: the confusion matrix; see `confusion`.
        class_names: class names in label order.
    """
    pairs = confused_pairs(matrix, class_names)[::-1]
    drawn = new_figure(WIDTH, 1.0 + 0.24 * max(len(pairs), 1))
    axes = drawn.subplots()
    labels = [f"{short(true, 18)} → {short(predicted, 18)}" for true, predicted, _ in pairs]
    bars = axes.barh(range(len(pairs)), [count for _, _, count in pairs], color=ORANGE, height=0.7)
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set(title="most confused: true → predicted" if pairs else "nothing is confused", xlabel="images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    return drawn


def confused_pairs(matrix: NDArray[np.int64], class_names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the most confused pairs as (true class, predicted class, images), the most frequent first."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    places = [divmod(int(place), len(matrix)) for place in order]
    return [(class_names[row], class_names[col], int(wrong[row, col])) for row, col in places if wrong[row, col]]


def _matrix(axes: Axes, matrix: NDArray[np.int64], class_names: Sequence[str]) -> None:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class", title="confusion, each row of 100 %")
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(1))
    bar.outline.set_visible(False)
    if len(class_names) <= NAMED:
        names = [short(name, 16) for name in class_names]
        few = len(names) <= NUMBERED
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
        axes.set_xticks(range(len(names)), names, fontsize=8, **turned)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(class_names) <= NUMBERED:
        for (row, col), count in np.ndenumerate(matrix):
            colour = "#ffffff" if shares[row, col] > 0.55 else "#000000"
            axes.text(col, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)


@figure
def class_accuracy(correct: NDArray[np.int64], images: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw the accuracy of each class with its 95 % confidence interval, the lowest first.

    Args:
        correct: number of correctly classified images of each class, shape (classes,).
        images: number of images of each class, shape (classes,); classes without images are left out.
        class_names: class names in label order.
    """
    there = np.flatnonzero(images)
    order = there[np.argsort(correct[there] / images[there], kind="stable")]
    shown = order if len(order) <= NAMED else order[:HARDEST]
    drawn = new_figure(WIDTH, max(1.6, 0.8 + 0.23 * len(shown)))
    axes = drawn.subplots()
    shares = correct[shown] / images[shown]
    bounds = np.array([wilson(int(correct[index]), int(images[index])) for index in shown])
    errors = np.abs(bounds.T - shares)
    rows = np.arange(len(shown))[::-1]
    axes.barh(rows, shares, color=BLUE, alpha=0.75, height=0.72)
    axes.errorbar(shares, rows, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2, alpha=0.7)
    labels = [f"{short(class_names[index])}  ({images[index]:,})" for index in shown]
    axes.set_yticks(rows, labels, fontsize=8)
    title = f"the {len(shown)} hardest of {len(order)} classes" if len(shown) < len(order) else "accuracy by class"
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(shown) - 0.4), xlabel="right, with 95 % interval (images)", title=title)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    return drawn


@figure
def accuracy_by_size(
    trained: NDArray[np.int64], correct: NDArray[np.int64], images: NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Draw the accuracy of each class against the number of its training images, with the hardest classes labelled.

    Args:
        trained: number of training images of each class, shape (classes,).
        correct: number of correctly classified images of each class in the evaluated split.
        images: number of images of each class in the evaluated split; classes without images are left out.
        class_names: class names in label order.
    """
    there = np.flatnonzero(images)
    sizes, shares = trained[there], correct[there] / images[there]
    drawn = new_figure(WIDTH, 3.6)
    axes = drawn.subplots()
    axes.scatter(sizes, shares, s=36, color=BLUE, alpha=0.65, edgecolors="none")
    log = sizes.max() > 10 * max(sizes.min(), 1)
    if log:
        axes.set_xscale("log")
    places = np.log(np.maximum(sizes, 1)) if log else sizes.astype(float)
    places = (places - places.min()) / max(np.ptp(places), 1e-9)
    named: list[int] = []
    near = 0.06 * (1 - min(0.9, shares.min()))
    for place in np.argsort(shares, kind="stable")[:NAMED]:
        # Labels that would overlap are left out.
        clear = all(abs(shares[place] - shares[k]) > near or abs(places[place] - places[k]) > 0.45 for k in named)
        if clear and len(named) < 8:
            named.append(int(place))
    for place in named:
        right = places[place] > 0.5
        name, offset = short(class_names[there[place]], 18), (-7 if right else 7, -3)
        at = (float(sizes[place]), float(shares[place]))
        axes.annotate(name, at, offset, textcoords="offset points", ha="right" if right else "left", fontsize=8)
    axes.set(xlabel="training images of the class", ylabel="right", title="accuracy by size of the class")
    low = max(-0.03, min(0.9, shares.min() - 0.08))
    axes.set_ylim(low, 1 + 0.04 * (1 - low))
    axes.yaxis.set_major_locator(
        FixedLocator([tick for tick in MaxNLocator(6).tick_values(low, 1) if low <= tick < 1.001])
    )
    axes.xaxis.set_major_locator(axes.xaxis.get_major_locator() if log else MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return drawn


@figure
def reliability(logits: Tensor, labels: NDArray[np.int64], temperature: float) -> Figure:
    """Draw a reliability diagram and a histogram of confidence, before and after temperature scaling.

    Args:
        logits: shape (N, classes).
        labels: int64, shape (N,).
        temperature: the divisor of the logits before the softmax.
    """
    drawn = new_figure(WIDTH, 3.9)
    upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=":", label="as it should be")
    edges = np.linspace(0, 1, BINS + 1)
    kinds = [("as trained", 1.0, ORANGE)]
    if temperature != 1:
        kinds.append((f"temperature {temperature:.2f}", temperature, BLUE))
    for name, divisor, colour in kinds:
        confidence, predicted = (logits / divisor).softmax(dim=1).max(dim=1)
        right = predicted.numpy() == labels
        places = np.clip(np.digitize(confidence.numpy(), edges, right=True) - 1, 0, BINS - 1)
        counts = np.bincount(places, minlength=BINS)
        there = counts > 0
        centres = np.bincount(places, confidence.numpy(), BINS)[there] / counts[there]
        shares = np.bincount(places, right, BINS)[there] / counts[there]
        error = calibration_error(logits / divisor, labels)
        upper.plot(centres, shares, color=colour, linewidth=1.2, label=f"{name}: ECE {error:.3f}")
        # The area of a point shows its number of images, because a few say little about accuracy.
        upper.scatter(centres, shares, s=8 + 160 * counts[there] / len(labels), color=colour, alpha=0.7, clip_on=False)
        lower.stairs(counts / len(labels), edges, color=colour, fill=True, alpha=0.35)
    upper.set(ylabel="right", xlim=(0, 1), ylim=(0, 1.03))
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    drawn.legend(loc="outside upper left", fontsize=8)
    return drawn
