"""Reader of finished run folders: metrics, evaluations, curves and settings for the report."""

from __future__ import annotations

import csv
import logging
import shlex
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.models.schemas import COUNTS, Environment, check_values
from headstart.runs.folder import CHECK, LR_RANGE
from headstart.runs.listing import Run, read_run
from headstart.runs.predictions import CLASS_CURVES, OUT_OF_FOLD, SAVED_SPLITS, Evaluation, read_evaluation
from headstart.utils.errors import DataError, format_error
from headstart.utils.files import csv_value, read_json, read_text, regular_file

Curves = Mapping[str, Sequence[tuple[float, float]]]  # metric name -> (epoch, value) pairs in order


@dataclass(frozen=True)
class FinishedRun(Run):
    """The content of a finished run's folder: its settings and metrics, and what its other files hold.

    Attributes:
        config: text of its config.yaml.
        environment: content of its environment.json.
        class_names: class names in label order.
        train_counts: number of training images of each class, int64, shape (classes,).
        image_names: image names of each split, as in split.csv and in the order of the evaluations.
        evaluations: the evaluations that the run has saved, by split.
        curves: logged scalars by epoch; empty if no logger has written them.
        class_curves: validation accuracy of each class by epoch, shape (epochs, classes).
        lr_range: learning rate, loss and smoothed loss of each step of the learning rate range test of lr=auto, shape
            (steps, 3); empty without that test.
    """

    config: str
    environment: Mapping[str, Any]
    class_names: tuple[str, ...]
    train_counts: NDArray[np.int64]
    image_names: Mapping[str, Sequence[str]]
    evaluations: Mapping[str, Evaluation]
    curves: Curves
    class_curves: NDArray[np.float64]
    lr_range: NDArray[np.float64]

    @property
    def evaluation(self) -> Evaluation:
        """Return the evaluation that the report's charts show: that of test if there is one, else that of val."""
        return next(self.evaluations[split] for split in SAVED_SPLITS if split in self.evaluations)

    @property
    def command(self) -> str:
        """Return the command line that started the run, quoted for a shell."""
        return shlex.join(map(str, self.environment.get("command", ())))

    @property
    def best_epoch(self) -> float | None:
        """Return the epoch of the best checkpoint, counted from 1; None if it is not known."""
        return self.metrics.get("epochs/best")

    @property
    def chooses_epoch(self) -> bool:
        """Return whether the best epoch is the best by the monitored metric, and not the last one.

        It is the last one of a fitted head, of the final model of a cross-validation and of a run without validation.
        """
        without_val = "data/val_size" not in self.metrics and str(self.settings["monitor"]).startswith("val/")
        fitted = self.settings["optimizer.name"] == "lbfgs"
        return not (without_val or fitted or OUT_OF_FOLD in self.evaluations)

    @property
    def stopped_early(self) -> bool:
        """Return whether the run ended before its last epoch because the monitored metric no longer improved."""
        return self.chooses_epoch and bool(self.metrics["epochs/run"] < self.settings["epochs"])  # type: ignore[operator]


def read_finished(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        DataError: if it is not a run folder or is damaged, or its run has not finished or saved no evaluations.
    """
    run = read_run(folder)
    if run is None:
        raise DataError(f"{folder} is no run folder: it has no config.yaml of headstart's.")
    if not run.metrics and (folder / "metrics.json").exists():
        raise DataError(f"{folder}: its metrics.json is damaged. Copy the run folder again, or resume it by ckpt_path.")
    if not run.metrics:
        raise DataError(f"{folder}: this run has not ended, it has no metrics.json. Resume it by ckpt_path.")
    paths = {split: folder / "evaluation" / split for split in SAVED_SPLITS}
    evaluations = {split: read_evaluation(path) for split, path in paths.items() if path.is_dir()}
    if not evaluations and not {"data/val_size", "data/test_size"} & run.metrics.keys():
        raise DataError(f"{folder}: this run has no images of val or test, and a report is about those.")
    if not evaluations:
        raise DataError(
            f"{folder} has no evaluation of val or test. Make one by headstart evaluate {folder} --split val."
        )
    class_names = next(iter(evaluations.values())).class_names
    environment = read_environment(folder)
    try:
        _check_run(run, evaluations)
        train_counts, image_names = _read_split(folder / "split.csv", class_names)
        return FinishedRun(
            **vars(run),
            config=read_text(folder / "config.yaml"),
            environment=environment,
            class_names=class_names,
            train_counts=train_counts,
            image_names=image_names,
            evaluations=evaluations,
            curves=read_curves(folder),
            class_curves=_read_numbers(folder / "evaluation" / CLASS_CURVES)[:, 1:],
            lr_range=_read_numbers(folder / LR_RANGE),
        )
    except (OSError, ValueError, LookupError, csv.Error) as error:
        raise DataError(
            f"{folder} is damaged or was changed ({format_error(error)}). Copy the run folder again."
        ) from None


def _check_run(run: Run, evaluations: Mapping[str, Evaluation]) -> None:
    """Raise a ValueError unless a run's files are complete and belong together."""
    for name in ("epochs/run", "time/total_s", "time/fit_s", "params/total", "params/trainable"):
        if run.metrics.get(name) is None:
            raise ValueError(f"metrics.json has no {name}")
    if not isinstance(run.settings.get("epochs"), int) and run.settings.get("optimizer.name") != "lbfgs":
        raise ValueError("config.yaml has no number of epochs")
    if len({evaluation.class_names for evaluation in evaluations.values()}) > 1:
        raise ValueError("its evaluations are of different classes")


def read_environment(folder: Path) -> dict[str, Any]:
    """Read a run folder's environment.json.

    Raises:
        DataError: if it is missing or damaged.
    """
    path = folder / "environment.json"
    try:
        environment = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({format_error(error)}). Copy the run folder again.") from None
    check_values(Environment, environment, path, DataError, "Copy the run folder again.")
    return dict(environment)


def read_check(folder: Path) -> dict[str, int] | None:
    """Read a run folder's check.json, the number of findings by kind; return None if it is missing or damaged."""
    try:
        return COUNTS.validate_python(read_json(folder / CHECK))
    except (OSError, ValueError):  # the files were not checked, or nothing depends on it
        return None


def _read_split(path: Path, class_names: Sequence[str]) -> tuple[NDArray[np.int64], dict[str, list[str]]]:
    """Read split.csv: return the number of training images of each class, and the image names of each split."""
    counts = dict.fromkeys(class_names, 0)
    names: dict[str, list[str]] = {}
    with regular_file(path).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            names.setdefault(row["split"], []).append(csv_value(row["image"]))
            if row["split"] == "train":
                counts[csv_value(row["class"])] += 1
    return np.array(list(counts.values()), dtype=np.int64), names


def _read_numbers(path: Path) -> NDArray[np.float64]:
    """Read the numbers below the header of a CSV file; return an array of shape (0, 0) if there are none."""
    rows = []
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    return np.array(rows) if rows else np.empty((0, 0))


# --- curves --------------------------------------------------------------------------------------------------


def read_curves(folder: Path) -> Curves:
    """Read the logged scalars of a run by epoch, counted from 1.

    They come from the TensorBoard logger, or else from the CSV logger. The result is empty if neither has logged.
    """
    scalars = _read_tensorboard(folder / "tensorboard") or _read_csv_logger(folder / "csv" / "metrics.csv")
    ends = sorted(scalars.pop("epoch", {}).items())
    last_steps = [step for step, _ in ends]
    curves = {}
    for name, points in scalars.items():
        # Learning rates are logged at the first step of an epoch, everything else at its last one.
        indices = [(min(bisect_left(last_steps, step), len(ends) - 1), value) for step, value in sorted(points.items())]
        if ends and not name.startswith("best/"):  # the final metrics for TensorBoard's HPARAMS tab are no curves
            curves[name] = [(ends[index][1] + 1, value) for index, value in indices]
    return curves


def _read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Read the values of every scalar by step; if a resumed run has logged a step twice, the later value counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it logs which files it opens
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()[SCALARS]}


def _read_csv_logger(path: Path) -> dict[str, dict[int, float]]:
    scalars: dict[str, dict[int, float]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name != "step" and text:
                        scalars.setdefault(name, {})[int(row["step"])] = float(text)
    return scalars
