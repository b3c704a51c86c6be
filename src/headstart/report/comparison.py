"""Comparison of runs on the same images: accuracy with intervals, McNemar's test and learning curves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from headstart.report.charts import WIDTH
from headstart.report.html import render
from headstart.report.statistics import Comparison, compare, wilson
from headstart.report.style import BLUE, CYCLE, INK, figure, new_figure, short, svg
from headstart.runs.finished import FinishedRun
from headstart.runs.listing import differing, setting
from headstart.runs.predictions import KEPT
from headstart.utils.errors import DataError
from headstart.utils.files import write_text


@dataclass(frozen=True)
class Compared:
    """A run with its results on the images that several runs have in common.

    Attributes:
        run: the run.
        name: a name that distinguishes it from the other runs.
        right: for each common image, whether it is classified correctly.
        interval: the 95 % confidence interval of its accuracy on the common images.
        against_best: the paired test against the best run; None for the best run itself.
    """

    run: FinishedRun
    name: str
    right: NDArray[np.bool_]
    interval: tuple[float, float]
    against_best: Comparison | None

    @property
    def accuracy(self) -> float:
        """Return the accuracy on the common images."""
        return float(self.right.mean())

    @property
    def val_loss(self) -> str:
        """Return the loss on the whole validation split as text."""
        value = self.run.run.metrics.get("val/loss")
        return "not finite" if value is None else f"{value:.3f}"


def write_comparison(runs: Sequence[FinishedRun], folder: Path) -> Path:
    """Write a web page that compares runs.

    Args:
        runs: two or more runs.
        folder: the folder of the index.html to write.

    Returns:
        The path of the page.

    Raises:
        DataError: the runs have no evaluated images in common.
    """
    split, compared = compare_runs(runs)
    settings = differing([run.run for run in runs])
    charts = {
        "accuracy": accuracies(compared),
        **{f"{kind} by epoch": curves(compared, f"val/{kind}") for kind in ("accuracy", "loss")},
    }
    page = render(
        "comparison.html.j2",
        split=split,
        images=len(compared[0].right),
        compared=compared,
        settings=settings,
        setting=setting,
        charts={name: Markup(svg(chart)) for name, chart in charts.items()},
        left_out=[
            f"{run.folder}: {len(run.names[split]) - len(compared[0].right)}"
            for run in runs
            if len(run.names[split]) > len(compared[0].right)
        ],
        repeat=shlex.join(["headstart", "report", *(str(run.folder) for run in runs)]),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def compare_runs(runs: Sequence[FinishedRun]) -> tuple[str, list[Compared]]:
    """Compare runs on the images that all of them were evaluated on, matched by name and class.

    Returns:
        The split and the compared runs, the best first.

    Raises:
        DataError: there are no such images.
    """
    split = next((split for split in KEPT if all(split in run.evaluations for run in runs)), None)
    if split is None:
        raise DataError("these runs have no split in common that was kept: compare runs on the same data.")
    answers = [_answers(run, split) for run in runs]
    common = [key for key in answers[0] if all(key in others for others in answers[1:])]
    if not common:
        raise DataError(
            f"these runs have no image of their {split} split in common, by name and class: compare runs on the same "
            f"data and data.split_seed."
        )
    rights = [np.array([found[key] for key in common]) for found in answers]
    order = sorted(range(len(runs)), key=lambda place: -rights[place].mean())
    best = rights[order[0]]
    named = names_of(runs)
    return split, [
        Compared(
            runs[place],
            named[place],
            rights[place],
            wilson(int(rights[place].sum()), len(common)),
            compare(best, rights[place]) if place != order[0] else None,
        )
        for place in order
    ]


def _answers(run: FinishedRun, split: str) -> dict[tuple[str, str], bool]:
    """Return whether each image, identified by name and class, is classified correctly."""
    found = run.evaluations[split]
    classes = (run.class_names[label] for label in found.labels)
    right = (found.predicted == found.labels).tolist()
    return dict(zip(zip(run.names[split], classes, strict=True), right, strict=True))


def names_of(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a name for each run: its settings that differ from the other runs', otherwise its folder's name."""
    settings = differing([run.run for run in runs])
    told = [{name.removesuffix(".name"): setting(run.run.settings.get(name)) for name in settings} for run in runs]
    names = [", ".join(f"{name}={value}" for name, value in found.items() if value) for found in told]
    alone = all(names) and len(set(names)) == len(names) and len(settings) <= 4
    return names if alone else [run.folder.resolve().name for run in runs]


# --- charts --------------------------------------------------------------------------------------------------


@figure
def accuracies(compared: Sequence[Compared]) -> Figure:
    """Draw the accuracy of each run with its 95 % confidence interval, the best on top."""
    drawn = new_figure(WIDTH, 1.0 + 0.3 * len(compared))
    axes = drawn.subplots()
    rows = np.arange(len(compared))[::-1]
    shares = np.array([one.accuracy for one in compared])
    bounds = np.array([one.interval for one in compared]).T
    axes.errorbar(shares, rows, xerr=np.abs(bounds - shares), fmt="o", color=BLUE, ecolor=INK, elinewidth=1, capsize=3)
    axes.set_yticks(rows, [short(one.name, 36) for one in compared], fontsize=8)
    axes.set(xlabel="accuracy, with 95 % interval", ylim=(-0.6, len(compared) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    return drawn


@figure
def curves(compared: Sequence[Compared], metric: str) -> Figure:
    """Draw a metric of several runs by epoch; the best runs are coloured, further ones are grey."""
    drawn = new_figure(WIDTH, 3.1)
    axes = drawn.subplots()
    for place, one in reversed(list(enumerate(compared))):
        points = one.run.curves.get(metric, ())
        if points:
            few = place < len(CYCLE)
            axes.plot(
                *zip(*points, strict=True),
                color=CYCLE[place] if few else INK,
                alpha=1 if few else 0.25,
                linewidth=1.6 if few else 1,
                label=short(one.name, 36) if few else None,
                marker="o" if len(points) < 15 else None,
                markersize=3,
            )
    axes.set(xlabel="epoch", ylabel=metric, title=f"{metric} by epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if "accuracy" in metric:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, reverse=True)
    return drawn
