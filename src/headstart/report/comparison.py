"""Comparison of runs on the same images: accuracy with intervals, McNemar's test and learning curves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from headstart.report.charts import plot_curves
from headstart.report.html import write_html
from headstart.report.statistics import Comparison, compare, wilson
from headstart.report.style import BLUE, CYCLE, INK, WIDTH, figure, new_figure, row_axes, short, svg
from headstart.runs.finished import FinishedRun
from headstart.runs.listing import differing, format_setting
from headstart.runs.predictions import SAVED_SPLITS
from headstart.utils.errors import DataError


@dataclass(frozen=True)
class ComparedRun:
    """A run with its results on the images that several runs have in common.

    Attributes:
        run: the run.
        name: a name that distinguishes it from the other runs.
        correct: for each common image, whether it is classified correctly.
        interval: the 95 % confidence interval of its accuracy on the common images.
        against_best: the paired test against the best run; None for the best run itself.
    """

    run: FinishedRun
    name: str
    correct: NDArray[np.bool_]
    interval: tuple[float, float]
    against_best: Comparison | None

    @property
    def accuracy(self) -> float:
        """Return the accuracy on the common images."""
        return float(self.correct.mean())

    @property
    def val_loss(self) -> str:
        """Return the loss on the whole validation split as text; empty without one."""
        if "data/val_size" not in self.run.metrics:
            return ""
        value = self.run.metrics.get("val/loss")
        return "not finite" if value is None else f"{value:.3f}"


def write_comparison(runs: Sequence[FinishedRun], folder: Path) -> Path:
    """Write a web page that compares two or more runs, index.html in a folder, and return its path.

    Raises:
        DataError: the runs have no evaluated images in common.
    """
    split, compared = compare_runs(runs)
    common = len(compared[0].correct)
    left_out = {run.folder: len(run.evaluations[split].labels) - common for run in runs}
    drawn = "val" if any("val/loss" in run.curves for run in runs) else "train"
    charts = {
        "accuracy": accuracies(compared),
        **{f"{kind} by epoch": curves(compared, f"{drawn}/{kind}") for kind in ("accuracy", "loss")},
    }
    return write_html(
        folder,
        "comparison.html.j2",
        split=split,
        images=common,
        compared=compared,
        settings=differing(runs),
        setting=format_setting,
        charts={name: svg(chart) for name, chart in charts.items()},
        left_out=[f"{path}: {images}" for path, images in left_out.items() if images],
        repeat=shlex.join(["headstart", "report", *(str(run.folder) for run in runs)]),
    )


def compare_runs(runs: Sequence[FinishedRun]) -> tuple[str, list[ComparedRun]]:
    """Compare runs on the images that all of them were evaluated on, matched by name and class.

    Returns:
        The split and the compared runs, the best first.

    Raises:
        DataError: there are no such images.
    """
    split = next((split for split in SAVED_SPLITS if all(split in run.evaluations for run in runs)), None)
    if split is None:
        raise DataError("these runs have saved predictions of different splits: compare runs on the same data.")
    results = [_correct_by_image(run, split) for run in runs]
    common = [image for image in results[0] if all(image in others for others in results[1:])]
    if not common:
        raise DataError(
            f"these runs have no image of their {split} split in common, by name and class: compare runs on the same "
            f"data and data.split_seed."
        )
    correct = [np.array([result[image] for image in common]) for result in results]
    names = names_of(runs)
    order = sorted(range(len(runs)), key=lambda index: -correct[index].mean())
    best = order[0]
    return split, [
        ComparedRun(
            runs[index],
            names[index],
            correct[index],
            wilson(int(correct[index].sum()), len(common)),
            compare(correct[best], correct[index]) if index != best else None,
        )
        for index in order
    ]


def _correct_by_image(run: FinishedRun, split: str) -> dict[tuple[str, str], bool]:
    """Return whether each image, identified by name and class, is classified correctly."""
    evaluation = run.evaluations[split]
    classes = (run.class_names[label] for label in evaluation.labels)
    correct = (evaluation.predicted == evaluation.labels).tolist()
    names = run.image_names.get(split, evaluation.images)  # split.csv has no out-of-fold split
    return dict(zip(zip(names, classes, strict=True), correct, strict=True))


def names_of(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a name for each run: its settings that differ from the other runs', otherwise its folder's name."""
    settings = differing(runs)
    values = [{name.removesuffix(".name"): format_setting(run.settings.get(name)) for name in settings} for run in runs]
    names = [", ".join(f"{name}={value}" for name, value in row.items() if value) for row in values]
    distinct = all(names) and len(set(names)) == len(names) and len(settings) <= 4
    return names if distinct else [run.folder.resolve().name for run in runs]


# --- charts --------------------------------------------------------------------------------------------------


@figure
def accuracies(compared: Sequence[ComparedRun]) -> Figure:
    """Draw the accuracy of each run with its 95 % confidence interval, the best on top."""
    fig, axes, rows = row_axes([short(run.name, 36) for run in compared])
    means = np.array([run.accuracy for run in compared])
    errors = np.abs(np.array([run.interval for run in compared]).T - means)
    axes.errorbar(means, rows, xerr=errors, fmt="o", color=BLUE, ecolor=INK, elinewidth=1, capsize=3)
    axes.set_xlabel("accuracy with 95 % confidence interval")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return fig


@figure
def curves(compared: Sequence[ComparedRun], metric: str) -> Figure:
    """Draw a metric of several runs by epoch; the best runs are coloured, further ones are grey."""
    fig = new_figure(WIDTH, 3.1)
    axes = fig.subplots()
    grey = {"color": INK, "linewidth": 1, "alpha": 0.25}
    lines = []
    for index, run in enumerate(compared):
        few = index < len(CYCLE)
        label = short(run.name, 36) if few else f"_{run.name}"  # matplotlib omits labels that begin with _
        properties = {"color": CYCLE[index], "linewidth": 1.6} if few else grey
        lines.append((label, run.run.curves.get(metric, ()), properties))
    plot_curves(axes, reversed(lines), metric)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, reverse=True)
    return fig
