"""What a trained classifier is worth: metrics of every split, and what it gives for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning.pytorch as pl

from headstart.cache.build import Batches
from headstart.data.dataset import LabelledImages
from headstart.runs.predictions import KEPT, Evaluation, evaluations
from headstart.training.calibration import fitted_temperature
from headstart.training.classifier import TransferClassifier
from headstart.training.split_metrics import KeepOutputs, figures_of_splits


@dataclass(frozen=True)
class Results:
    """Results of a run.

    Attributes:
        metrics: `split/metric` of every split.
        evaluations: of the splits whose answers are kept and whose images were all seen.
        temperature: what logits are divided by for probabilities.
    """

    metrics: dict[str, float]
    evaluations: Sequence[Evaluation]
    temperature: float


def evaluate_splits(
    trainer: pl.Trainer,
    classifier: TransferClassifier,
    batches: Batches,
    images: LabelledImages,
    keep: KeepOutputs,
) -> Results:
    """Evaluates a trained classifier on every split of its run.

    Args:
        trainer: with `keep` among its callbacks.
        classifier: with the weights to evaluate.
        batches: what it is evaluated on.
        images: the same images, with their names and classes.
        keep: keeps the logits.
    """
    metrics, outputs = figures_of_splits(trainer, classifier, batches.evaluation, keep, kept=KEPT)
    temperature = 1.0
    if "val" in outputs:
        temperature = fitted_temperature(outputs["val"].logits, images.splits["val"].labels)
    found = evaluations(outputs, images.splits, metrics, class_names=images.class_names, temperature=temperature)
    return Results(metrics, found, temperature)
