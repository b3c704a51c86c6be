"""Fit of the head that fine-tuning starts from: linear probing, then fine-tuning (Kumar et al., arXiv:2202.10054)."""

from __future__ import annotations

import logging
import time

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import backbone_features
from headstart.data.datamodule import ImageDataModule
from headstart.models.backbone import Backbone
from headstart.models.head import FittedHead
from headstart.training.fitted_head.fit import choose_weight_decay, fit_at_once, training_rows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.path import PRECISIONS
from headstart.training.fitted_head.rows import spectrum_of
from headstart.utils.progress import progress_bar, shows_progress

log = logging.getLogger(__name__)


def fit_first_head(
    backbone: Backbone,
    datamodule: ImageDataModule,
    trainer: pl.Trainer,
    *,
    class_weights: Tensor,
    label_smoothing: float,
    engine: str,
    max_gb: float,
) -> FittedHead | None:
    """Fit a linear head to features of the training images; its weight decay is chosen by cross-validation.

    The images are not augmented, nor mixed by mixup: the head is only where fine-tuning starts, and a frozen run has
    the same features. Every process of a run fits the same head.

    Args:
        backbone: the backbone, which is left as it was. Its features are cached, as those of a frozen one are.
        datamodule: the images.
        trainer: the Trainer of the run; see `frozen_features`.
        class_weights: the weight of each class in the loss, shape (classes,).
        label_smoothing: the label smoothing of the loss, in [0, 1).
        engine: the engine that computes the features; see `build_engine`.
        max_gb: the largest size of the feature cache, in gigabytes (10^9 bytes).

    Returns:
        The head; None, with a warning, if its features exceed `max_gb`.

    Raises:
        HeadstartError: an image cannot be read, the disk is full, or the backbone fails; see `frozen_features`.
    """
    start = time.perf_counter()
    data = _features(backbone, datamodule, trainer, engine, max_gb)
    if data is None:
        return None
    device, head = trainer.strategy.root_device, nn.Linear(backbone.num_features, len(class_weights))
    rows = training_rows(data, device)
    spectrum, loss = spectrum_of(rows), Loss(class_weights.to(device, rows.dtype), label_smoothing)
    with progress_bar("Fitting the head", len(PRECISIONS) * len(rows), shown=shows_progress(trainer)) as advance:
        choice = choose_weight_decay(data, rows, spectrum, head, loss, advance)
        fit_at_once(rows, spectrum, head, loss, choice.weight_decay)
    log.info("finetune.head_epochs=auto: the head is fitted before the first epoch; its weight decay is %s", choice)
    validation = _evaluate(head, data) if "val" in data.splits else {}
    description = {"weight_decay": choice.weight_decay, "log_loss": round(choice.loss, 6), **validation}
    return FittedHead(description, head.state_dict(), time.perf_counter() - start)


@torch.no_grad()
def _evaluate(head: nn.Linear, data: FeatureDataModule) -> dict[str, float]:
    """Return accuracy and loss on the validation split: what fine-tuning has to beat."""
    parts = [(head(features.float().cpu()), labels.cpu()) for features, labels in data.val_dataloader()]
    logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    accuracy, loss = float((logits.argmax(dim=1) == labels).float().mean()), float(F.cross_entropy(logits, labels))
    log.info("finetune.head_epochs=auto: fine-tuning starts from val/accuracy %.4f and val/loss %.4f", accuracy, loss)
    return {"val/accuracy": round(accuracy, 6), "val/loss": round(loss, 6)}


def _features(
    backbone: Backbone, datamodule: ImageDataModule, trainer: pl.Trainer, engine: str, max_gb: float
) -> FeatureDataModule | None:
    """Return the features of the images that are trained and validated on, without augmentation; computed if missing.

    Those of the test split are left to the tuned backbone.
    """
    images = ImageDataModule(
        {split: samples for split, samples in datamodule.splits.items() if split != "test"},
        training=datamodule.evaluation,
        evaluation=datamodule.evaluation,
        num_workers=datamodule.num_workers,
    )
    return backbone_features(backbone, images, trainer, engine=engine, max_gb=max_gb)
