"""Metrics, logits and features of each split from an evaluation, and parameter counts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headstart.cache.feature_loaders import FeatureDataModule
from headstart.data.datamodule import ImageDataModule
from headstart.runs.predictions import FEATURED, Outputs
from headstart.training.classifier import TransferClassifier
from headstart.training.distributed import gather_rows

HALF = torch.finfo(torch.float16).max


class OutputCollector(pl.Callback):
    """A callback that collects the logits of an evaluation, and the features of some of its images.

    It stores the features of at most `FEATURED` evenly spaced images.

    Attributes:
        images: the number of images of the next evaluation, over all processes; 0 collects nothing.
        outputs: the outputs of the last evaluation; None unless all its images were seen.
    """

    def __init__(self) -> None:
        self.images = 0
        self.outputs: Outputs | None = None
        self._logits: list[Tensor] = []
        self._features: list[Tensor] = []
        self._featured: list[int] = []
        self._seen = 0
        self._stride = 1
        self._hook: RemovableHandle | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the outputs, and register a forward pre-hook on the head, which receives the features."""
        self.outputs = None
        self._logits, self._features, self._featured, self._seen = [], [], [], 0
        self._stride = max(1, -(-self.images // (FEATURED * trainer.world_size)))
        assert isinstance(pl_module, TransferClassifier)
        if self.images:
            self._hook = pl_module.head.register_forward_pre_hook(self._collect_features)

    def _collect_features(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0] if inputs[0].ndim == 2 else inputs[0].mean(dim=1)  # the mean over several views
        selected = range(-self._seen % self._stride, len(features), self._stride)
        self._features.append(features[list(selected)].detach().clamp(-HALF, HALF).half().cpu())
        self._featured += [self._seen + index for index in selected]
        self._seen += len(features)

    def on_test_batch_end(self, _: pl.Trainer, __: pl.LightningModule, outputs: Any, *___: Any) -> None:
        """Store the logits of a batch."""
        if self.images:
            self._logits.append(outputs.float().cpu())

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Remove the hook, and concatenate the outputs; logits are gathered from all processes."""
        if not self._hook:
            return
        self._hook.remove()
        self._hook = None
        logits = gather_rows(torch.cat(self._logits), trainer.world_size)
        if len(logits) == self.images:
            # Each process has every world_size-th image, so its own features are already evenly spaced.
            featured = np.array(self._featured, dtype=np.int64) * trainer.world_size
            self.outputs = Outputs(logits, torch.cat(self._features), featured)


def compute_split_metrics(
    trainer: pl.Trainer,
    classifier: TransferClassifier,
    data: ImageDataModule | FeatureDataModule,
    collector: OutputCollector,
    collected: Collection[str],
) -> tuple[dict[str, float], dict[str, Outputs]]:
    """Compute the metrics of every split, including train, without augmentation or dropout.

    `collector`, one of the Trainer's callbacks, collects the outputs of the splits in `collected`.

    Returns:
        metrics: `split/metric` -> value, with accuracies as fractions in [0, 1]. The accuracies of classes that have no
            image in the split are left out.
        outputs: split -> outputs, for those splits of `collected` of which all images were seen.
    """
    metrics: dict[str, float] = {}
    outputs: dict[str, Outputs] = {}
    for split, samples in data.splits.items():
        classifier.evaluated_split = split
        collector.images = len(samples) if split in collected else 0
        trainer.test(classifier, data.evaluation_dataloader(split), verbose=False)
        metrics |= {name: round(float(value), 6) for name, value in trainer.callback_metrics.items()}
        for index in set(range(len(classifier.class_names))) - set(samples.labels.tolist()):
            del metrics[f"{split}/class_accuracy/{classifier.class_names[index]}"]
        if collector.outputs:
            outputs[split] = collector.outputs
    return metrics, outputs


def parameter_counts(classifier: TransferClassifier) -> dict[str, int]:
    """Count the parameters: `params/total`, and `params/trainable`, those that are trained in any epoch."""
    trained = [p for group in classifier.unfreezing.parameter_groups(classifier.head) for p in group.parameters]
    return {
        "params/total": sum(p.numel() for p in classifier.parameters()),
        "params/trainable": sum(p.numel() for p in trained),
    }
