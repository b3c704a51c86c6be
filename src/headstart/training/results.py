"""Evaluation of a trained classifier: metrics of every split, and predictions for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import lightning.pytorch as pl

from headstart.cache.build import Batches
from headstart.data.dataset import LabelledImages
from headstart.runs.predictions import SAVED_SPLITS, Evaluation, build_evaluation
from headstart.training.calibration import fit_temperature
from headstart.training.classifier import TransferClassifier
from headstart.training.split_metrics import OutputCollector, compute_split_metrics


@dataclass(frozen=True)
class Results:
    """The results of a run.

    Attributes:
        metrics: `split/metric` -> value, for every split.
        evaluations: the evaluations of test and val, as far as they exist and all their images were seen.
        temperature: what logits are divided by before the softmax; see `fit_temperature`.
    """

    metrics: dict[str, float]
    evaluations: Sequence[Evaluation]
    temperature: float

    def with_folds(self, folds: Results) -> Results:
        """Add the results of a cross-validation at the same settings, whose temperature replaces this one.

        Its temperature was fitted on all images, and each was new to the model that saw it.
        """
        own = [replace(evaluation, temperature=folds.temperature) for evaluation in self.evaluations]
        return Results({**self.metrics, **folds.metrics}, [*folds.evaluations, *own], folds.temperature)


def evaluate_splits(
    trainer: pl.Trainer,
    classifier: TransferClassifier,
    batches: Batches,
    images: LabelledImages,
    collector: OutputCollector,
) -> Results:
    """Evaluate a classifier on every split, and fit the temperature on val; `collector` is one of the callbacks."""
    metrics, outputs = compute_split_metrics(trainer, classifier, batches.evaluation, collector, collected=SAVED_SPLITS)
    temperature = 1.0
    if "val" in outputs:
        temperature = fit_temperature(outputs["val"].logits, images.splits["val"].labels)
    evaluations = [
        build_evaluation(
            split, images.splits[split], split_outputs, metrics, class_names=images.class_names, temperature=temperature
        )
        for split, split_outputs in outputs.items()
    ]
    return Results(metrics, evaluations, temperature)
