"""The metrics of a split."""

from __future__ import annotations

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
