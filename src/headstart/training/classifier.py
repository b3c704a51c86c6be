"""TransferClassifier: a pretrained backbone and a new head, trained by Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from headstart.data.datamodule import Batch
from headstart.data.preprocessing import Normalisation, Preprocessing
from headstart.models.freezing import hold_in_eval
from headstart.models.unfreezing import Finetuning, Unfreezing
from headstart.training.distributed import check_agreement, check_strategy, renew
from headstart.training.optimization import BuildOptimizer, BuildSchedule, build_optimizer, build_schedule, can_fuse

SPLITS = ("train", "val", "test")
NOTED_IMAGES = 4096
BACKBONE = "backbone."  # in front of the names of the backbone's tensors in a state dict
ADAM: BuildOptimizer = partial(build_optimizer, name="adam", lr=1e-3)
ALL_AT_ONCE = Finetuning()
CONSTANT: BuildSchedule = partial(build_schedule, name="none")


class TransferClassifier(pl.LightningModule):
    """An image classifier with a pretrained backbone and a new head.

    Args:
        backbone: from images of shape (batch, 3, height, width) to features of shape (batch, num_features).
        head: from features to logits of shape (batch, number of classes).
        class_names: in label order.
        preprocessing: whose normalisation uint8 images get; without it, images have to come normalised.
        freeze: True trains the head only, False everything; a block's name freezes the backbone up to it.
        finetuning: how what is not frozen is trained.
        optimizer: from groups of parameters to an optimizer.
        scheduler: from an optimizer (and `epochs`, `steps`, `monitor`) to a learning-rate schedule or None.
        monitor: the metric that a plateau schedule watches.
        mixing: mixes the images of a training batch and their labels; see `build_mixing`.
        label_smoothing: in [0, 1), in the training loss.
        class_weights: weight of each class in the training loss; None weighs every image alike.
        description: plain values kept in checkpoints as their hyperparameters.

    Logs `split/metric` for train, val and test: `loss`, `accuracy` (top-1), `macro_accuracy` (mean over
    classes) and, where there are more than five classes, `top5_accuracy`; accuracies are fractions in [0, 1].
    The training loss is what is minimised; of mixed images, the label with the larger share counts. The losses of
    val and test are plain cross-entropy, so that they compare between runs whatever their smoothing and weights.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        class_names: Sequence[str],
        *,
        preprocessing: Preprocessing | None = None,
        freeze: bool | str = True,
        finetuning: Finetuning = ALL_AT_ONCE,
        optimizer: BuildOptimizer = ADAM,
        scheduler: BuildSchedule = CONSTANT,
        monitor: str = "val/accuracy",
        mixing: nn.Module | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Pixels with their channels side by side are what convolutions are fast on.
        self.backbone, self.head = backbone.to(memory_format=torch.channels_last), head
        self.class_names = tuple(class_names)
        self.normalise = Normalisation(preprocessing) if preprocessing else None
        self.optimizer, self.scheduler, self.monitor = optimizer, scheduler, monitor
        self.mixing, self.label_smoothing = mixing, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.metrics = nn.ModuleDict({f"{split}_split": _metrics(len(class_names)) for split in SPLITS})
        # Batches to be counted, as logits, labels and loss.
        self._noted: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {split: [] for split in SPLITS}
        self.unfreezing = Unfreezing(backbone, freeze, finetuning)
        self._compiled = False
        self.class_accuracy: dict[str, Tensor] = {}  # of each split when it was last counted; shape (classes,)
        self.evaluated_split = "test"  # which split `test_step` reports under; see `evaluation.py`
        if description is not None:
            self.save_hyperparameters(description, logger=False)
        hold_in_eval(self.unfreezing.frozen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resumes with or without the backbone in the checkpoint and here: see `checkpoints.without_backbone`."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(BACKBONE)}
        same = checkpoint.get("hyper_parameters", {}).get("backbone_sha256") == self.hparams.get("backbone_sha256")
        # The second is of a run that averages its weights.
        for key in {"state_dict", "current_model_state"} & checkpoint.keys():
            theirs = {name for name in checkpoint[key] if name.startswith(BACKBONE)}
            if same and (not own or not theirs):
                rest = {name: value for name, value in checkpoint[key].items() if name not in theirs}
                checkpoint[key] = own | rest

    def train(self, mode: bool = True) -> TransferClassifier:
        """Sets the training mode of what is not frozen."""
        super().train(mode)
        hold_in_eval(self.unfreezing.frozen)
        return self

    def compile_backbone(self, wanted: bool = True) -> None:
        """Compiles the backbone when it is first used; in place, so that names in checkpoints stay what they are."""
        if wanted:
            self.backbone.compile()
            self._compiled = True

    def on_fit_start(self) -> None:
        """Makes sure that what is to unfreeze can, and that all processes train by the same strategy."""
        if chosen := self.hparams.get("chosen"):
            check_agreement(chosen["strategy"])
        if self.unfreezing.finetuning.has_stages:
            check_strategy(self.trainer.strategy)

    def on_train_epoch_start(self) -> None:
        """Unfreezes what trains from this epoch on."""
        if self.unfreezing.begin_epoch(self.current_epoch, self.trainer.max_epochs or 0):
            self.train()
            renew(self.trainer.strategy)
            if self._compiled:  # each stage needs kernels of its own: without this, torch gives up after eight
                torch.compiler.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            images: preprocessed, of shape (batch, 3, height, width); uint8 pixels are normalised here. Or what the
                backbone has made of them while all of it was frozen, of shape (batch, num_features).

        Returns:
            Logits of shape (batch, number of classes).
        """
        features = images if images.ndim == 2 else self.backbone(self._normalised(images))
        logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss to minimise."""
        images, labels = batch
        targets = labels  # or, of mixed images, the shares of all classes
        if self.mixing is not None:
            images, targets = self.mixing(self._normalised(images), labels)
            labels = targets.argmax(dim=1)
        logits = self(images)
        loss = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=self.label_smoothing)
        self._update("train", logits.detach(), labels, loss.detach())
        return loss

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or self.normalise is None:
            return images
        normalised: Tensor = self.normalise(images)
        return normalised.to(self.dtype)  # of 64-true; of mixed precision it is float32

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Counts a batch of the validation split."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Counts a batch of `evaluated_split`, and gives its logits."""
        return self._evaluate(self.evaluated_split, batch)

    def _evaluate(self, split: str, batch: Batch) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        self._update(split, logits, labels, F.cross_entropy(logits, labels))
        return logits

    def _update(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Notes a batch; metrics count many at once, as counting takes longer than a step of a head."""
        noted = self._noted[split]
        noted.append((logits.float(), labels, loss))
        if len(noted) * len(labels) >= NOTED_IMAGES:
            self._count(split)

    def _count(self, split: str) -> None:
        if not self._noted[split]:
            return
        logits, labels, losses = zip(*self._noted[split], strict=True)
        self._noted[split].clear()
        sizes = torch.tensor([len(part) for part in labels], device=losses[0].device)
        for name, metric in self._metrics_of(split).items(keep_base=True):
            if name == "loss":
                metric.update(torch.stack(losses), sizes)
            else:
                metric.update(torch.cat(logits), torch.cat(labels))

    def _metrics_of(self, split: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_split"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    @property
    def logged_metrics(self) -> tuple[str, ...]:
        """Names of the metrics of each split, without the split."""
        return tuple(str(name) for name in self._metrics_of("val") if name != "class_accuracy")

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training metrics, over the batches as they were seen."""
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of `evaluated_split`, per class too."""
        self._log(self.evaluated_split, per_class=True)

    def take_figures(self, split: str) -> dict[str, Tensor]:
        """The metrics of a split over the batches since the last call, without the split in their names."""
        self._count(split)
        metrics = self._metrics_of(split)
        values = {name: metric.compute() for name, metric in metrics.items(keep_base=True)}
        metrics.reset()
        return values

    def _log(self, split: str, per_class: bool = False) -> None:
        values = self.take_figures(split)
        by_class = self.class_accuracy[split] = values.pop("class_accuracy")
        # Evaluation after training repeats val and train; on their charts it would be a second last point.
        charted = not per_class or split == "test"
        figures = {f"{split}/{name}": value for name, value in values.items()}
        self.log_dict(figures, logger=charted)
        if per_class:
            named = zip(self.class_names, by_class, strict=True)
            self.log_dict({f"{split}/class_accuracy/{name}": value for name, value in named}, logger=False)

    def build_optimizer(self, **settings: Any) -> Optimizer:
        """Builds the optimizer over all that ever trains; a keyword such as `lr` beats the setting."""
        return self.optimizer(self.unfreezing.parameter_groups(self.head), **settings)

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of optimizers to come, and what checkpoints say of it."""
        self.optimizer = partial(self.optimizer, lr=lr)
        self.hparams["optimizer"] = {**self.hparams["optimizer"], "lr": lr}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all that ever trains, and its schedule."""
        optimizer = self.build_optimizer(fused=can_fuse(self.trainer))
        schedule = self.scheduler(
            optimizer,
            epochs=self.trainer.max_epochs,
            steps=int(self.trainer.estimated_stepping_batches),
            monitor=self.monitor,
            first_epochs=self.unfreezing.finetuning.head_epochs,
        )
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}


def _metrics(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "macro_accuracy": MulticlassAccuracy(num_classes, average="macro"),
        "class_accuracy": MulticlassAccuracy(num_classes, average="none"),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics, compute_groups=False)
