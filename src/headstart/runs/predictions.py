"""What a trained model answers to labelled images, and the tables of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from headstart.utils.files import csv_text, csv_value, read_json, regular, write_json, write_tensors, write_text

OUTPUTS, PREDICTIONS = "outputs.safetensors", "predictions.csv"
CLASS_CURVES = "val_accuracy_by_epoch.csv"  # in a run's evaluation folder
KEPT = ("test", "val")  # splits whose answers a run keeps; its report is of the first that there is
FEATURED = 500  # images whose features are kept: as many as a person looks at as points
TOP = 5  # classes that predictions.csv names for each image


@dataclass(frozen=True)
class Outputs:
    """What a classifier gives for the images of a split.

    Attributes:
        logits: float32, shape (images, classes), in the order of the images.
        features: what the head got, float16, of evenly spread images, shape (at most `FEATURED`, num_features).
        featured: the indices of these images, int64.
    """

    logits: Tensor
    features: Tensor
    featured: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """What a trained model answers to labelled images.

    Attributes:
        name: what was evaluated, for a folder's name.
        split: "test", "val" or "train".
        run_folder: of the model, if it lies in one.
        metrics: flat, named as in a run's metrics.json.
        notes: what is to be known of it, such as classes that only the model or only the data have.
        class_names: the model's.
        images: path or name of each image.
        labels: its true class, int64, shape (images,).
        outputs: the logits, and some features.
        temperature: what logits are divided by for probabilities; see `report/statistics.py`.
    """

    name: str
    split: str
    run_folder: Path | None
    metrics: dict[str, float]
    notes: list[str]
    class_names: tuple[str, ...]
    images: list[str]
    labels: NDArray[np.int64]
    outputs: Outputs
    temperature: float = 1.0

    @property
    def logits(self) -> Tensor:
        """Of shape (images, classes), float32."""
        return self.outputs.logits

    @cached_property
    def probabilities(self) -> Tensor:
        """Of shape (images, classes), float32, calibrated."""
        return (self.logits / self.temperature).softmax(dim=1)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The predicted class of each image."""
        return self.logits.argmax(dim=1).numpy()

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy of each image; as everywhere, of the logits as they are."""
        return F.cross_entropy(self.logits, torch.from_numpy(self.labels), reduction="none")

    def save(self, folder: Path) -> None:
        """Writes metrics.json, predictions.csv (an image a row), classes.csv (a class a row), outputs.safetensors."""
        write_text(folder / PREDICTIONS, self.predictions_csv())
        write_text(folder / "classes.csv", self.classes_csv())
        tensors = {"logits": self.logits, "labels": torch.from_numpy(self.labels), "features": self.outputs.features}
        tensors["featured"] = torch.from_numpy(self.outputs.featured)
        about = {"format": "pt", "class_names": json.dumps(self.class_names), "temperature": repr(self.temperature)}
        write_tensors(folder / OUTPUTS, tensors, about)
        write_json(folder / "metrics.json", self.metrics)

    def predictions_csv(self) -> str:
        """Image, true class, predicted class and probability, loss, and the next classes."""
        top = min(TOP, len(self.class_names))
        probabilities, classes = self.probabilities.sort(dim=1, descending=True, stable=True)
        further = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "probability")]
        rows = [("image", "true", "predicted", "probability", "loss", *further)]
        for image, label, loss, shares, ranked in zip(
            self.images,
            self.labels,
            self.losses.tolist(),
            probabilities[:, :top].tolist(),
            classes[:, :top].tolist(),
            strict=True,
        ):
            named = [(self.class_names[index], share) for index, share in zip(ranked, shares, strict=True)]
            rows.append(
                (image, self.class_names[label], *named[0], loss, *(part for pair in named[1:] for part in pair))
            )
        return csv_text(rows)

    def classes_csv(self) -> str:
        """Of each class that has an image or was predicted: how many images, recall, precision and F1."""
        predicted = self.predicted
        rows: list[Sequence[Any]] = [("class", "images", "predicted", "correct", "recall", "precision", "f1")]
        for index, name in enumerate(self.class_names):
            true, claimed = self.labels == index, predicted == index
            images, claims, correct = int(true.sum()), int(claimed.sum()), int((true & claimed).sum())
            if images or claims:
                recall = round(correct / images, 6) if images else ""
                precision = round(correct / claims, 6) if claims else ""
                rows.append(
                    (name, images, claims, correct, recall, precision, round(2 * correct / (images + claims), 6))
                )
        return csv_text(rows)


def image_names(samples: Samples) -> list[str]:
    """What images are called in tables: their paths, or their names if they are no files."""
    return list(samples.images) if isinstance(samples.images, Sequence) else list(samples.names)


def evaluations(
    outputs: Mapping[str, Outputs],
    splits: Mapping[str, Samples],
    metrics: Mapping[str, float],
    *,
    class_names: tuple[str, ...],
    temperature: float,
) -> list[Evaluation]:
    """A run's own evaluations, as `headstart evaluate` would find them again.

    Args:
        outputs: of each split to keep.
        splits: their images.
        metrics: of all splits.
        class_names: in label order.
        temperature: see `Evaluation`.
    """
    return [
        Evaluation(
            name=split,
            split=split,
            run_folder=None,
            metrics={name: value for name, value in metrics.items() if name.startswith(f"{split}/")}
            | {"data/num_classes": len(class_names), f"data/{split}_size": len(splits[split])},
            notes=[],
            class_names=class_names,
            images=image_names(splits[split]),
            labels=splits[split].labels,
            outputs=found,
            temperature=temperature,
        )
        for split, found in outputs.items()
    ]


def read_evaluation(folder: Path) -> Evaluation:
    """Reads what `Evaluation.save` has written.

    Args:
        folder: where it was written; its name is the evaluation's.

    Raises:
        DataError: a file is missing, damaged, or not of the same images as the others.
    """
    try:
        with safe_open(regular(folder / OUTPUTS), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            about = file.metadata()
        _check_outputs(tensors, len(json.loads(about["class_names"])))
        with regular(folder / PREDICTIONS).open(encoding="utf-8", errors="surrogateescape", newline="") as table:
            images = [csv_value(row["image"]) for row in csv.DictReader(table)]
        metrics: Any = METRICS.validate_python(read_json(folder / "metrics.json"))
        outputs = Outputs(tensors["logits"], tensors["features"], tensors["featured"].numpy())
        found = Evaluation(
            name=folder.name,
            split=next(name.partition("/")[0] for name in metrics if name.endswith("/accuracy")),
            run_folder=None,
            metrics=metrics,
            notes=[],
            class_names=tuple(json.loads(about["class_names"])),
            images=images,
            labels=tensors["labels"].numpy(),
            outputs=outputs,
            temperature=float(about["temperature"]),
        )
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError, SafetensorError) as error:
        raise DataError(f"{folder}: no evaluation that can be read ({error}). Make it by headstart evaluate.") from None
    if not len(images) == len(found.labels) == len(found.logits):
        raise DataError(f"{folder}: its files are not of the same images. Make them again by headstart evaluate.")
    return found


def _check_outputs(tensors: Mapping[str, Tensor], classes: int) -> None:
    """Makes sure that tensors that were read are of one number of images, and of these classes."""
    logits, labels, features, featured = (tensors[name] for name in ("logits", "labels", "features", "featured"))
    images = len(labels)
    if logits.shape != (images, classes) or not logits.is_floating_point():
        raise ValueError(f"logits of shape {tuple(logits.shape)} for {images} images and {classes} classes")
    if labels.dtype != torch.int64 or labels.ndim != 1 or (images and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"labels that are not indices of {classes} classes")
    if featured.dtype != torch.int64 or featured.shape != features.shape[:1] or features.ndim != 2:
        raise ValueError("features that are not of the images")
    if len(featured) and not 0 <= featured.min() <= featured.max() < images:
        raise ValueError("features of images that there are not")
