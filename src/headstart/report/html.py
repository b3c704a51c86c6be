"""Self-contained web page of a run's report, and its templates."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import headstart
from headstart.report.contents import WORST, Contents
from headstart.report.fold_table import fold_rows
from headstart.report.image_grids import VIEWS, worst_indices
from headstart.report.statistics import FRACTIONS, calibration_error, mean_interval, wilson
from headstart.report.style import svg
from headstart.runs.finished import FinishedRun, read_check
from headstart.runs.predictions import OUT_OF_FOLD, Evaluation
from headstart.utils.files import csv_text, write_bytes, write_text
from headstart.utils.metrics import LAST_EPOCH

LISTED = 10  # most classes in the lists of the hardest and of the slowest
LEARNED = 0.9  # a class counts as learned at this fraction of its best accuracy
METRICS = ("accuracy", "macro_accuracy", "top5_accuracy", "loss")


def write_page(contents: Contents, folder: Path) -> Path:
    """Write index.html, worst.csv and figures/NAME.png in place of an earlier report, and return the page's path."""
    run, settings = contents.run, contents.run.settings
    write_text(folder / "worst.csv", worst_csv(run.evaluation))
    shutil.rmtree(folder / "figures", ignore_errors=True)
    for name, file in contents.pngs.items():
        write_bytes(folder / "figures" / f"{name}.png", file)
    return write_html(
        folder,
        "run.html.j2",
        run=run,
        data=data_name(settings),
        title=run.folder.resolve().name,
        headline=headline(run),
        metrics=metric_rows(run),
        check=read_check(run.folder),
        folds=fold_rows(run.metrics, format_metric),
        settings={name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()},
        charts={name: svg(chart) for name, chart in contents.charts.items()},
        tiles=contents.tiles,
        hardest=hardest(run),
        slowest=slowest(run),
        calibration=calibration_rows(run),
        wrong=len(worst_indices(run.evaluation)),
        repeat=f"python train.py --config-path={shlex.quote(str(run.folder.resolve()))} --config-name=config",
        views=VIEWS,
        problems=contents.problems,
    )


def write_html(folder: Path, name: str, **values: Any) -> Path:
    """Write a rendered template to index.html in a folder, and return its path; see `render`."""
    write_text(folder / "index.html", render(name, **values))
    return folder / "index.html"


def render(name: str, **values: Any) -> str:
    """Render a template of this package with these variables; they are escaped unless they are `Markup`."""
    loader = jinja2.PackageLoader("headstart.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["counted"] = lambda count, noun: f"{count:,} {noun}{'s' if count != 1 else ''}"
    return environment.get_template(name).render(version=headstart.__version__, **values)


def worst_csv(evaluation: Evaluation, count: int = WORST) -> str:
    """Return the misclassified images with the largest losses as CSV text.

    The columns are image, true and predicted class, the probabilities of the predicted and the true class, and loss.
    """
    names, probabilities, losses = evaluation.class_names, evaluation.probabilities, evaluation.losses
    rows: list[Sequence[Any]] = [("image", "true", "predicted", "probability", "true_probability", "loss")]
    for index in worst_indices(evaluation)[:count]:
        label, predicted = int(evaluation.labels[index]), int(evaluation.predicted[index])
        both = (round(float(probabilities[index, column]), 6) for column in (predicted, label))
        rows.append((evaluation.images[index], names[label], names[predicted], *both, round(float(losses[index]), 6)))
    return csv_text(rows)


def data_name(settings: Mapping[str, Any]) -> str:
    """Return a data set's name: for a user's own data the folder's name."""
    source = str(settings["data.source"])
    return Path(settings["data.root"]).resolve().name if source in ("csv", "imagefolder") else source


def headline(run: FinishedRun) -> dict[str, Any]:
    """Return the accuracy on the reported split, with its 95 % confidence interval and the number of images."""
    split, images = run.evaluation.split, len(run.evaluation.labels)
    accuracy = run.metrics[f"{split}/accuracy"] or 0.0
    low, high = wilson(round(accuracy * images), images)
    return {"split": split, "name": hyphenated(split), "accuracy": accuracy, "low": low, "high": high, "images": images}


def metric_rows(run: FinishedRun) -> list[tuple[tuple[str, int] | None, str, str, str, str]]:
    """Return the rows of the table of metrics.

    Returns:
        For each row: (split, number of rows) in the first row of a split, otherwise None; metric; value; 95 %
        confidence interval; value of the last epoch. The last two may be empty strings.
    """
    rows: list[tuple[tuple[str, int] | None, str, str, str, str]] = []
    for split in ("train", "val", "test", OUT_OF_FOLD):
        images = int(run.metrics.get(f"data/{split}_size") or 0)
        values = {name: value for name in METRICS if (value := run.metrics.get(f"{split}/{name}")) is not None}
        for name, value in values.items():
            interval = ""
            if name in FRACTIONS:
                low, high = wilson(round(value * images), images)
                interval = f"{low:.1%} – {high:.1%}"
            elif name == "loss" and split in run.evaluations:
                low, high = mean_interval(run.evaluations[split].losses.numpy())
                interval = f"{low:.3f} – {high:.3f}"
            # Where the last epoch is kept, its metrics are the values.
            last = format_metric(name, run.metrics.get(f"{LAST_EPOCH}{split}/{name}")) if run.chooses_epoch else ""
            first = (f"{hyphenated(split)} ({images:,})", len(values)) if name == next(iter(values)) else None
            rows.append((first, name.replace("_", " "), format_metric(name, value), interval, last))
    return rows


def format_metric(name: str, value: float | None) -> str:
    """Format a loss with three decimals and any other metric in per cent; None becomes an empty string."""
    return "" if value is None else f"{value:.3f}" if name == "loss" else f"{value:.1%}"


def hyphenated(split: str) -> str:
    """Return the name of a split as a sentence has it, such as out-of-fold."""
    return split.replace("_", "-")


def calibration_rows(run: FinishedRun) -> list[tuple[str, str, str]]:
    """Return, for each split, the expected calibration error before and after temperature scaling."""
    fitted_on = OUT_OF_FOLD if OUT_OF_FOLD in run.evaluations else "val"
    return [
        (
            f"{hyphenated(split)}, which the temperature was fitted on" if split == fitted_on else hyphenated(split),
            f"{calibration_error(evaluation.logits, evaluation.labels):.3f}",
            f"{calibration_error(evaluation.logits / evaluation.temperature, evaluation.labels):.3f}",
        )
        for split, evaluation in run.evaluations.items()
    ]


def hardest(run: FinishedRun) -> list[tuple[str, float, int, int, str]]:
    """Return the least accurate classes: name, accuracy, images, training images and most frequent wrong class."""
    matrix, names = run.evaluation.confusion, run.class_names
    correct, images = matrix.diagonal(), matrix.sum(axis=1)
    imperfect = np.flatnonzero(images > correct)
    order = imperfect[np.argsort(correct[imperfect] / images[imperfect], kind="stable")][:LISTED]
    confused_with = (matrix - np.diag(correct)).argmax(axis=1)
    return [
        (
            names[index],
            float(correct[index] / images[index]),
            int(images[index]),
            int(run.train_counts[index]),
            names[confused_with[index]],
        )
        for index in order
    ]


def slowest(run: FinishedRun) -> list[tuple[str, int, float]]:
    """Return the classes learned last: name, first epoch with `LEARNED` of the best accuracy, and the best accuracy."""
    curves = run.class_curves
    if len(curves) < 2:
        return []
    best = curves.max(axis=0)
    epochs = (curves >= LEARNED * best).argmax(axis=0) + 1
    order = [index for index in np.argsort(-epochs, kind="stable") if best[index] > 0 and epochs[index] > 1]
    return [(run.class_names[index], int(epochs[index]), float(best[index])) for index in order[:LISTED]]
