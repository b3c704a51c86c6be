"""Results of a cross-validation: the out-of-fold answers of all images, and metrics over them and over the folds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.dataset import Samples
from headstart.report.statistics import FRACTIONS, wilson
from headstart.runs.predictions import FEATURED, OUT_OF_FOLD, Evaluation, Outputs, build_evaluation
from headstart.training.calibration import fit_temperature
from headstart.training.metrics import split_metrics
from headstart.training.results import Results
from headstart.utils.statistics import t_interval


def combine_folds(samples: Samples, assigned: NDArray[np.int64], answers: Sequence[Evaluation]) -> Results:
    """Combine the answers of all folds' models.

    Args:
        samples: the images that were divided into folds, N of them.
        assigned: the fold of each image, from 1, int64, shape (N,).
        answers: for each fold, the evaluation of the images that were held out, in their order.

    Returns:
        The evaluation of all images as the split "out_of_fold", the temperature that was fitted on it, and as metrics:
        `out_of_fold/METRIC` over all images; `folds/K/METRIC` of each fold; `folds/mean/METRIC` and `folds/std/METRIC`,
        the mean and the standard deviation (n - 1) over the folds; `folds/low/METRIC` and `folds/high/METRIC`, the
        bounds of a 95 % confidence interval. The interval of a fraction of the images is Wilson's, over all images;
        that of another metric is Student's t interval of the mean over folds.
    """
    class_names = answers[0].class_names
    outputs = _join_outputs(assigned, answers)
    pooled = split_metrics(OUT_OF_FOLD, outputs.logits, torch.from_numpy(samples.labels), class_names)
    temperature = fit_temperature(outputs.logits, samples.labels)
    evaluation = build_evaluation(
        OUT_OF_FOLD, samples, outputs, pooled, class_names=class_names, temperature=temperature, folds=assigned
    )
    metrics = evaluation.metrics | _fold_metrics(answers)
    for name in FRACTIONS:
        if f"folds/mean/{name}" in metrics:
            correct = round(pooled[f"{OUT_OF_FOLD}/{name}"] * len(samples))
            metrics |= _bounds(name, *wilson(correct, len(samples)))
    return Results(metrics, [evaluation], temperature)


def _join_outputs(assigned: NDArray[np.int64], answers: Sequence[Evaluation]) -> Outputs:
    """Put the logits and features of all folds in the order of the images; keep at most `FEATURED` features."""
    held_out = [np.flatnonzero(assigned == fold) for fold in range(1, len(answers) + 1)]
    order = np.argsort(np.concatenate(held_out))
    logits = torch.cat([answer.logits for answer in answers])[torch.from_numpy(order)]
    indices = [own[answer.outputs.featured] for own, answer in zip(held_out, answers, strict=True)]
    featured = np.concatenate(indices)
    kept = np.argsort(featured)[:: -(-len(featured) // FEATURED)]
    features = torch.cat([answer.outputs.features for answer in answers])[torch.from_numpy(kept)]
    return Outputs(logits, features, featured[kept])


def _fold_metrics(answers: Sequence[Evaluation]) -> dict[str, float]:
    """Return the metrics of each fold's held-out images, and their statistics over the folds."""
    metrics: dict[str, float] = {}
    names = [name.removeprefix("test/") for name in answers[0].metrics if name.startswith("test/")]
    for name in (name for name in names if "/" not in name):  # not of single classes: a fold has few images of each
        values = [_number(answer.metrics[f"test/{name}"]) for answer in answers]
        metrics |= {f"folds/{fold}/{name}": value for fold, value in enumerate(values, start=1)}
        mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
        metrics |= {f"folds/mean/{name}": round(mean, 6), f"folds/std/{name}": round(std, 6)}
        metrics |= _bounds(name, *t_interval(values))
    return metrics


def _bounds(name: str, low: float, high: float) -> dict[str, float]:
    return {f"folds/low/{name}": round(low, 6), f"folds/high/{name}": round(high, 6)}


def _number(value: float | None) -> float:
    """Return a value of metrics.json, in which null stands for a number that is not finite."""
    return math.nan if value is None else value
