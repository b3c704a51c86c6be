"""Answers for all folds from heads that are fitted together, in one problem, instead of in a run for each fold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.cache.build import build_batches
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.config.optimizer_schema import LBFGS
from headstart.config.ranges import AUTO
from headstart.config.schema import Config
from headstart.data.build import build_data
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.splits import split_table
from headstart.models.build import open_backbone
from headstart.runs.predictions import FEATURED, Evaluation, Outputs, build_evaluation
from headstart.training.build import build_classifier, open_trainer
from headstart.training.fitted_head.classifier import FittedHeadClassifier
from headstart.training.fitted_head.fit import training_rows
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.path import PATH_DTYPE, fit_folds, weight_decay_path, weight_of_others
from headstart.training.fitted_head.rows import TrainingRows, spectrum_of
from headstart.training.metrics import split_metrics
from headstart.training.split_metrics import HALF
from headstart.training.strategy import resolve_strategy
from headstart.training.trainer import quiet_lightning

log = logging.getLogger(__name__)


def fits_together(config: Config) -> bool:
    """Tell whether the heads of all folds can be fitted together: each to all images of the other folds."""
    return isinstance(config.optimizer, LBFGS) and config.data.train_per_class is None


def answer_folds(
    config: Config, folder: Path, images: LabelledImages, samples: Samples, assigned: NDArray[np.int64]
) -> list[Evaluation]:
    """Fit a head for each fold to the images of the others, and return its answers for the images held out.

    With `optimizer.weight_decay=auto`, the weight decay of a fold is the one with the lowest log loss on the other
    folds: the answers of a fold have no part in its choice.

    Args:
        config: the config of the cross-validation.
        folder: its run folder.
        images: the classes.
        samples: the images that were divided into folds, N of them.
        assigned: the fold of each image, from 1, int64, shape (N,).

    Raises:
        HeadstartError: what stops a run before training; see `train.run`.
    """
    classifier, data, device = _open(config, folder, replace(images, splits={"train": samples}))
    rows = training_rows(data, device)
    loss = classifier.fit_loss(device, rows.dtype)
    by_row = torch.from_numpy(np.tile(assigned - 1, len(rows) // len(samples))).to(device)
    heads = _fit(config, rows, loss, by_row)
    features, _ = data.evaluation_table.rows_at(torch.arange(len(samples)))
    standardized = rows.standardization.apply(features.to(device))
    logits = torch.empty(len(samples), len(images.class_names))
    for fold, head in enumerate(heads):
        held_out = torch.from_numpy(assigned == fold + 1)
        logits[held_out] = (standardized[held_out.to(device)] @ head[:-1] + head[-1]).float().cpu()
    return [
        _evaluate(samples, np.flatnonzero(assigned == fold + 1), logits, features, images.class_names)
        for fold in range(len(heads))
    ]


def _open(
    config: Config, folder: Path, everything: LabelledImages
) -> tuple[FittedHeadClassifier, FeatureDataModule, torch.device]:
    """Return a classifier with a new head, the features of all images, and the device to fit on."""
    quiet_lightning()
    trainer, _ = open_trainer(config, folder)
    backbone = open_backbone(config)
    data = build_data(config, everything, backbone.preprocessing, trainer.num_devices)
    strategy, choice = resolve_strategy(config, backbone, data, trainer, len(everything.class_names))
    classifier = build_classifier(config, everything, strategy, choice, split_table(everything))
    batches = build_batches(config, classifier.hparams, data, strategy, trainer, epochs_done=0)
    assert isinstance(classifier, FittedHeadClassifier)
    assert isinstance(batches.training, FeatureDataModule)
    return classifier, batches.training, trainer.strategy.root_device


def _fit(config: Config, rows: TrainingRows, loss: Loss, folds: Tensor) -> Tensor:
    """Fit the head of each fold, shape (folds, width + 1, classes)."""
    assert isinstance(config.optimizer, LBFGS)
    spectrum = spectrum_of(rows)
    folded = FoldedRows(rows, spectrum, folds, rows.dtype)
    others = weight_of_others(folded, loss)
    if config.optimizer.weight_decay != AUTO:
        weight_decay = torch.full_like(others, float(config.optimizer.weight_decay))
        return folded.standardized_heads(fit_folds(folded, loss, weight_decay))
    points = weight_decay_path(FoldedRows(rows, spectrum, folds, PATH_DTYPE), loss)
    by_point = torch.stack([point.by_fold for point in points])
    chosen = (by_point.sum(dim=1, keepdim=True) - by_point).argmin(dim=0).tolist()
    log.info(
        "1 / C of the folds' heads, by the log loss on the other folds: %s",
        ", ".join(f"{points[index].precision:.3g}" for index in chosen),
    )
    start = torch.stack([points[index].heads[fold] for fold, index in enumerate(chosen)]).to(rows.dtype)
    precisions = others.new_tensor([points[index].precision for index in chosen])
    return folded.standardized_heads(fit_folds(folded, loss, precisions / others, start))


def _evaluate(
    samples: Samples, held_out: NDArray[np.int64], logits: Tensor, features: Tensor, class_names: Sequence[str]
) -> Evaluation:
    """Return the evaluation of the images of a fold, as the test split of its own run would be."""
    indices = torch.from_numpy(held_out)
    own, labels = logits[indices], torch.from_numpy(samples.labels[held_out])
    featured = np.arange(0, len(held_out), max(1, -(-len(held_out) // FEATURED)))
    kept = features[indices[featured].to(features.device)].clamp(-HALF, HALF).half().cpu()
    metrics = split_metrics("test", own, labels, class_names)
    outputs = Outputs(own, kept, featured)
    return build_evaluation(
        "test", samples.take(held_out), outputs, metrics, class_names=tuple(class_names), temperature=1.0
    )
