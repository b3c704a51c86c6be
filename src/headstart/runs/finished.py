"""What a finished run has left in its folder, read back for its report."""

from __future__ import annotations

import csv
import logging
import shlex
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.models.schemas import Environment, check_values
from headstart.runs.folder import LR_RANGE
from headstart.runs.listing import Run, read_run
from headstart.runs.predictions import CLASS_CURVES, KEPT, Evaluation, read_evaluation
from headstart.utils.errors import DataError, told
from headstart.utils.files import csv_value, read_json, read_text, regular

Curves = Mapping[str, Sequence[tuple[float, float]]]  # of each metric, (epoch, value) in order


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        run: its folder, settings and metrics.
        config: its config.yaml.
        environment: its environment.json.
        class_names: in label order.
        trained: training images of each class, int64, shape (classes,).
        names: of the images of each split, as in split.csv and in the order of the evaluations.
        evaluations: by split, those that the run has kept.
        curves: of each scalar by epoch, as far as a logger kept them.
        lr_range: rate, loss and smoothed loss of each step of the test of lr=auto, shape (steps, 3); empty without.
        class_curves: accuracy of each class on the validation split by epoch, shape (epochs, classes).
    """

    run: Run
    config: str
    environment: Mapping[str, Any]
    class_names: tuple[str, ...]
    trained: NDArray[np.int64]
    names: Mapping[str, Sequence[str]]
    evaluations: Mapping[str, Evaluation]
    curves: Curves
    class_curves: NDArray[np.float64]
    lr_range: NDArray[np.float64]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder

    @cached_property
    def judged(self) -> Evaluation:
        """The evaluation that the pictures are of."""
        return next(self.evaluations[split] for split in KEPT if split in self.evaluations)

    @property
    def command(self) -> str:
        """The command line that started it."""
        return shlex.join(map(str, self.environment.get("command", ())))

    @property
    def best_epoch(self) -> float | None:
        """The epoch of the best checkpoint, counted from 1."""
        return self.run.metrics.get("epochs/best")

    @property
    def stopped_early(self) -> bool:
        """Whether it ended before its last epoch."""
        return bool(self.run.metrics["epochs/run"] < self.run.settings["epochs"])  # type: ignore[operator]

    def counts(self, evaluation: Evaluation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each class, how many images are right and how many there are: int64, shape (classes,)."""
        classes = len(self.class_names)
        right = evaluation.predicted == evaluation.labels
        return np.bincount(evaluation.labels[right], minlength=classes), np.bincount(
            evaluation.labels, minlength=classes
        )

    def matrix(self, evaluation: Evaluation) -> NDArray[np.int64]:
        """Images by true class (rows) and predicted class (columns): int64, shape (classes, classes)."""
        classes = len(self.class_names)
        places = evaluation.labels * classes + evaluation.predicted
        return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def read_finished(folder: Path) -> FinishedRun:
    """Reads a run folder.

    Raises:
        DataError: it is none, or its run has not ended, or kept no answers.
    """
    run = read_run(folder)
    if run is None:
        raise DataError(f"{folder} is no run folder: it has no config.yaml of headstart's.")
    if not run.metrics:
        raise DataError(f"{folder}: this run has not ended, it has no metrics.json. Resume it by ckpt_path.")
    found = {split: folder / "evaluation" / split for split in KEPT}
    evaluations = {split: read_evaluation(place) for split, place in found.items() if place.is_dir()}
    if not evaluations:
        raise DataError(
            f"{folder} has no evaluation of val or test. Make one by headstart evaluate {folder} --split val."
        )
    class_names = next(iter(evaluations.values())).class_names
    environment = read_environment(folder)
    try:
        _check_run(run, evaluations)
        trained, names = _splits(folder / "split.csv", class_names)
        return FinishedRun(
            run=run,
            config=read_text(folder / "config.yaml"),
            environment=environment,
            class_names=class_names,
            trained=trained,
            names=names,
            evaluations=evaluations,
            curves=read_curves(folder),
            class_curves=_numbers(folder / "evaluation" / CLASS_CURVES)[:, 1:],
            lr_range=_numbers(folder / LR_RANGE),
        )
    except (OSError, ValueError, LookupError, csv.Error) as error:
        raise DataError(f"{folder} is damaged or was changed ({told(error)}). Copy the run folder again.") from None


def _check_run(run: Run, evaluations: Mapping[str, Evaluation]) -> None:
    """Makes sure that a run's files go together."""
    for name in ("epochs/run", "time/total_s", "time/fit_s", "params/total", "params/trainable"):
        if run.metrics.get(name) is None:
            raise ValueError(f"metrics.json has no {name}")
    if not isinstance(run.settings.get("epochs"), int):
        raise ValueError("config.yaml has no number of epochs")
    if len({evaluation.class_names for evaluation in evaluations.values()}) > 1:
        raise ValueError("its evaluations are of different classes")


def read_environment(folder: Path) -> dict[str, Any]:
    """A run folder's environment.json.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "environment.json"
    try:
        environment = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({told(error)}). Copy the run folder again.") from None
    check_values(Environment, environment, path, DataError, "Copy the run folder again.")
    return dict(environment)


def _splits(path: Path, class_names: Sequence[str]) -> tuple[NDArray[np.int64], dict[str, list[str]]]:
    """How many training images each class has, and what the images of each split are called."""
    counts = dict.fromkeys(class_names, 0)
    names: dict[str, list[str]] = {}
    with regular(path).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            names.setdefault(row["split"], []).append(csv_value(row["image"]))
            if row["split"] == "train":
                counts[csv_value(row["class"])] += 1
    return np.array(list(counts.values()), dtype=np.int64), names


def _numbers(path: Path) -> NDArray[np.float64]:
    """The numbers below the header of a csv; none without the file."""
    if not path.is_file():
        return np.empty((0, 0))
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    return np.array(rows) if rows else np.empty((0, 0))


# --- curves --------------------------------------------------------------------------------------------------


def read_curves(folder: Path) -> Curves:
    """The scalars of a run by epoch, counted from 1: TensorBoard's, or those of the csv logger; else none."""
    steps = _of_tensorboard(folder / "tensorboard") or _of_csv(folder / "csv" / "metrics.csv")
    ends = sorted(steps.pop("epoch", {}).items())
    last_steps = [step for step, _ in ends]
    found = {}
    for name, points in steps.items():
        # Learning rates are logged at the first step of an epoch, everything else at its last one.
        places = [(min(bisect_left(last_steps, step), len(ends) - 1), value) for step, value in sorted(points.items())]
        if ends and not name.startswith("best/"):  # the final figures, for HPARAMS
            found[name] = [(ends[place][1] + 1, value) for place, value in places]
    return found


def _of_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Values by step of every scalar; a resumed run's later value counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells which files it opens
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()[SCALARS]}


def _of_csv(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name != "step" and text:
                        found.setdefault(name, {})[int(row["step"])] = float(text)
    return found
