"""What a trained model answers to labelled images, and the tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from headstart.record import csv_text, write_json, write_text

TOP = 5  # classes that predictions.csv names for each image


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
        logits: float32, shape (images, classes).
    """

    name: str
    split: str
    run_folder: Path | None
    metrics: dict[str, float]
    notes: list[str]
    class_names: tuple[str, ...]
    images: list[str]
    labels: NDArray[np.int64]
    logits: Tensor

    def save(self, folder: Path) -> None:
        """Writes metrics.json, predictions.csv (an image a row) and classes.csv (a class a row)."""
        write_text(folder / "predictions.csv", self.predictions_csv())
        write_text(folder / "classes.csv", self.classes_csv())
        write_json(folder / "metrics.json", self.metrics)

    def predictions_csv(self) -> str:
        """Image, true class, predicted class and probability, loss, and the next classes."""
        top = min(TOP, len(self.class_names))
        probabilities, classes = self.logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        losses = F.cross_entropy(self.logits, torch.from_numpy(self.labels), reduction="none").tolist()
        further = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "probability")]
        rows = [("image", "true", "predicted", "probability", "loss", *further)]
        for image, label, loss, shares, ranked in zip(
            self.images, self.labels, losses, probabilities[:, :top].tolist(), classes[:, :top].tolist(), strict=True
        ):
            named = [(self.class_names[index], share) for index, share in zip(ranked, shares, strict=True)]
            rows.append(
                (image, self.class_names[label], *named[0], loss, *(part for pair in named[1:] for part in pair))
            )
        return csv_text(rows)

    def classes_csv(self) -> str:
        """Of each class that has an image or was predicted: how many images, recall, precision and F1."""
        predicted = self.logits.argmax(dim=1).numpy()
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
