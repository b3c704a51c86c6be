"""Predictions of a trained model for labelled images: logits, metrics, and the files that store them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from headstart.data.dataset import Samples
from headstart.models.schemas import METRICS
from headstart.utils.errors import DataError
from headstart.utils.files import csv_text, csv_value, read_json, regular_file, write_json, write_tensors, write_text

OUTPUTS, PREDICTIONS = "outputs.safetensors", "predictions.csv"
CLASS_CURVES = "val_accuracy_by_epoch.csv"  # in a run's evaluation folder
OUT_OF_FOLD = "out_of_fold"  # the split of a cross-validation: each image, as the model of its own fold sees it
SAVED_SPLITS = (OUT_OF_FOLD, "test", "val")  # splits whose predictions a run saves; its report uses the first there is
FEATURED = 500  # number of images whose features are saved: as many points as a scatter plot can show
TOP = 5  # classes that predictions.csv names for each image


@dataclass(frozen=True)
class Outputs:
    """The outputs of a classifier for the images of a split.

    Attributes:
        logits: logits in the order of the images, float32, shape (images, classes).
        features: inputs of the head for evenly spaced images, float16, shape (at most `FEATURED`, num_features).
        featured: indices of these images, int64.
    """

    logits: Tensor
    features: Tensor
    featured: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """The predictions and metrics of a trained model for labelled images.

    Attributes:
        name: name of what was evaluated, used as a folder's name.
        split: "test", "val", "train" or "out_of_fold".
        metrics: flat metrics, named as in a run's metrics.json.
        class_names: class names of the model, in label order.
        images: path or name of each image.
        labels: true class of each image, int64, shape (images,).
        outputs: the logits, and the features of some images.
        temperature: divisor of the logits for calibrated probabilities.
        run_folder: the model's run folder, if it lies in one.
        notes: remarks for the user, for example about classes that only the model or only the data have.
        folds: of a cross-validation, the fold of each image, int64, shape (images,); otherwise None.
    """

    name: str
    split: str
    metrics: dict[str, float]
    class_names: tuple[str, ...]
    images: list[str]
    labels: NDArray[np.int64]
    outputs: Outputs
    temperature: float = 1.0
    run_folder: Path | None = None
    notes: Sequence[str] = ()
    folds: NDArray[np.int64] | None = None

    @property
    def logits(self) -> Tensor:
        """Return the logits, float32, shape (images, classes)."""
        return self.outputs.logits

    @cached_property
    def probabilities(self) -> Tensor:
        """Return the calibrated probabilities, float32, shape (images, classes)."""
        return (self.logits / self.temperature).softmax(dim=1)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Return the predicted class of each image, int64, shape (images,)."""
        return self.logits.argmax(dim=1).numpy()

    @cached_property
    def losses(self) -> Tensor:
        """Return the cross-entropy of each image, float32, shape (images,); as everywhere, without the temperature."""
        return F.cross_entropy(self.logits, torch.from_numpy(self.labels), reduction="none")

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Return the confusion matrix: true classes in rows, predicted in columns; int64, shape (classes, classes)."""
        classes = len(self.class_names)
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def save(self, folder: Path) -> None:
        """Write metrics.json, predictions.csv, classes.csv and outputs.safetensors.

        Raises:
            OSError: if a file cannot be written.
            SafetensorError: if outputs.safetensors cannot be written.
            DiskError: if the disk is full.
        """
        write_text(folder / PREDICTIONS, self.predictions_csv())
        write_text(folder / "classes.csv", self.classes_csv())
        tensors = {"logits": self.logits, "labels": torch.from_numpy(self.labels), "features": self.outputs.features}
        tensors["featured"] = torch.from_numpy(self.outputs.featured)
        metadata = {"format": "pt", "class_names": json.dumps(self.class_names), "temperature": repr(self.temperature)}
        write_tensors(folder / OUTPUTS, tensors, metadata)
        write_json(folder / "metrics.json", self.metrics)

    def predictions_csv(self) -> str:
        """Return predictions.csv: a row for each image.

        The columns are the image, its true class, the predicted class, its probability, and the loss. The next most
        probable classes follow with their probabilities, up to `TOP` classes in all. The last column is the fold, if
        there are folds.
        """
        top = min(TOP, len(self.class_names))
        probabilities, classes = self.probabilities.sort(dim=1, descending=True, stable=True)
        further = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "probability")]
        folds = [()] * len(self.images) if self.folds is None else [(fold,) for fold in self.folds.tolist()]
        rows = [("image", "true", "predicted", "probability", "loss", *further, *(("fold",) if any(folds) else ()))]
        ranked = zip(classes[:, :top].tolist(), probabilities[:, :top].tolist(), strict=True)
        columns = self.images, self.labels, self.losses.tolist(), ranked, folds
        for image, label, loss, best, fold in zip(*columns, strict=True):
            first, *others = ((self.class_names[index], probability) for index, probability in zip(*best, strict=True))
            rows.append((image, self.class_names[label], *first, loss, *chain(*others), *fold))
        return csv_text(rows)

    def classes_csv(self) -> str:
        """Return classes.csv: a row for each class that has images or was predicted.

        The columns are the class and its number of images, predictions and correct predictions, then its recall,
        precision and F1. A recall or precision that is not defined is empty.
        """
        rows: list[Sequence[Any]] = [("class", "images", "predicted", "correct", "recall", "precision", "f1")]
        columns = self.labels, self.predicted, self.labels[self.predicted == self.labels]
        counts = (np.bincount(column, minlength=len(self.class_names)).tolist() for column in columns)
        for name, images, predicted, correct in zip(self.class_names, *counts, strict=True):
            if images or predicted:
                recall = round(correct / images, 6) if images else ""
                precision = round(correct / predicted, 6) if predicted else ""
                f1 = round(2 * correct / (images + predicted), 6)
                rows.append((name, images, predicted, correct, recall, precision, f1))
        return csv_text(rows)


def build_evaluation(
    split: str,
    samples: Samples,
    outputs: Outputs,
    metrics: Mapping[str, float],
    *,
    class_names: tuple[str, ...],
    **others: Any,
) -> Evaluation:
    """Build the evaluation of a split from the outputs for its images.

    Args:
        split: "test", "val", "train" or "out_of_fold".
        samples: the images of the split.
        outputs: the outputs for these images.
        metrics: metrics of this split and possibly of others, which are left out.
        class_names: class names in label order.
        **others: further attributes of `Evaluation`; its name is by default the split.
    """
    sizes = {"data/num_classes": len(class_names), f"data/{split}_size": len(samples)}
    return Evaluation(
        **{"name": split, **others},
        split=split,
        metrics={name: value for name, value in metrics.items() if name.startswith(f"{split}/")} | sizes,
        class_names=class_names,
        images=names_of(samples),
        labels=samples.labels,
        outputs=outputs,
    )


def names_of(samples: Samples) -> list[str]:
    """Return the paths of files, or the names of images in memory, as an evaluation lists them."""
    return list(samples.images) if isinstance(samples.images, Sequence) else list(samples.names)


def read_evaluation(folder: Path) -> Evaluation:
    """Read the files that `Evaluation.save` has written; the folder's name becomes the evaluation's name.

    Raises:
        DataError: if a file is missing or damaged, or the files have different numbers of images.
    """
    try:
        with safe_open(regular_file(folder / OUTPUTS), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata()
        class_names = tuple(json.loads(metadata["class_names"]))
        _check_outputs(tensors, len(class_names))
        with regular_file(folder / PREDICTIONS).open(encoding="utf-8", errors="surrogateescape", newline="") as table:
            images = [csv_value(row["image"]) for row in csv.DictReader(table)]
        metrics: Any = METRICS.validate_python(read_json(folder / "metrics.json"))
        evaluation = Evaluation(
            name=folder.name,
            split=next(name.partition("/")[0] for name in metrics if name.endswith("/accuracy")),
            metrics=metrics,
            class_names=class_names,
            images=images,
            labels=tensors["labels"].numpy(),
            outputs=Outputs(tensors["logits"], tensors["features"], tensors["featured"].numpy()),
            temperature=float(metadata["temperature"]),
        )
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError, SafetensorError) as error:
        raise DataError(f"{folder}: no evaluation that can be read ({error}). Make it by headstart evaluate.") from None
    if not len(images) == len(evaluation.labels) == len(evaluation.logits):
        raise DataError(f"{folder}: its files are not of the same images. Make them again by headstart evaluate.")
    return evaluation


def _check_outputs(tensors: Mapping[str, Tensor], classes: int) -> None:
    """Raise a KeyError or ValueError unless the tensors of outputs.safetensors agree in images and classes."""
    logits, labels, features, featured = (tensors[name] for name in ("logits", "labels", "features", "featured"))
    images = len(labels)
    if logits.shape != (images, classes) or not logits.is_floating_point():
        raise ValueError(f"logits of shape {tuple(logits.shape)} for {images} images and {classes} classes")
    if labels.dtype != torch.int64 or labels.ndim != 1 or (images and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"labels that are not indices of {classes} classes")
    if featured.dtype != torch.int64 or featured.shape != features.shape[:1] or features.ndim != 2:
        raise ValueError("features and their indices differ in number")
    if len(featured) and not 0 <= featured.min() <= featured.max() < images:
        raise ValueError(f"indices of features that are not below {images}, the number of images")
