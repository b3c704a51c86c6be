"""The metrics of a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def build_metrics(num_classes: int) -> MetricCollection:
    """Build loss, accuracy, macro accuracy, accuracy of each class and, of more than five classes, top-5 accuracy."""
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "macro_accuracy": MulticlassAccuracy(num_classes, average="macro"),
        "class_accuracy": MulticlassAccuracy(num_classes, average="none"),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics, compute_groups=False)


def split_metrics(split: str, logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of all images of a split at once.

    Args:
        split: the prefix of the names.
        logits: shape (images, classes).
        labels: int64, shape (images,).
        class_names: class names in label order.

    Returns:
        `split/METRIC` and, for each class that has images, `split/class_accuracy/NAME`.
    """
    metrics = build_metrics(len(class_names))
    del metrics["loss"]
    metrics.update(logits, labels)
    values = metrics.compute()
    by_class = values.pop("class_accuracy").tolist()
    values |= {f"class_accuracy/{class_names[index]}": by_class[index] for index in torch.unique(labels).tolist()}
    values["loss"] = F.cross_entropy(logits, labels)
    return {f"{split}/{name}": round(float(value), 6) for name, value in values.items()}
