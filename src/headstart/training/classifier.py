"""LightningModule that trains a pretrained backbone with a new head."""

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
from torchmetrics import MetricCollection

from headstart.data.datamodule import Batch
from headstart.data.preprocessing import Normalisation, Preprocessing
from headstart.models.freezing import hold_in_eval
from headstart.models.unfreezing import Finetuning, Unfreezing
from headstart.training.distributed import check_agreement, check_strategy, rewrap
from headstart.training.metrics import build_metrics
from headstart.training.optimization import BuildOptimizer, BuildSchedule, build_optimizer, build_schedule, can_fuse

SPLITS = ("train", "val", "test")
PENDING_IMAGES = 4096  # number of images after which the metrics are updated
BACKBONE = "backbone."  # prefix of the backbone's tensors in a state dict
ADAM: BuildOptimizer = partial(build_optimizer, name="adam", lr=1e-3)
ALL_AT_ONCE = Finetuning()
CONSTANT: BuildSchedule = partial(build_schedule, name="none")


class TransferClassifier(pl.LightningModule):
    """A LightningModule that classifies images with a pretrained backbone and a new head.

    It logs `split/metric` for train, val and test: `loss`, `accuracy` (top-1) and `macro_accuracy` (mean over classes).
    With more than five classes it also logs `top5_accuracy`. Accuracies are fractions in [0, 1].

    The training loss is the loss that is minimised. For images mixed by mixup or CutMix, the training accuracies count
    the label with the larger weight. The val and test losses are plain cross-entropy, without label smoothing or class
    weights, so that they can be compared between runs.

    Args:
        backbone: maps images of shape (batch, 3, height, width) to features of shape (batch, num_features).
        head: maps features to logits of shape (batch, number of classes).
        class_names: the class names in label order.
        preprocessing: gives the normalisation of uint8 images; with None, images must already be normalised.
        freeze: True trains the head only, False trains everything; a block's name freezes the backbone up to it.
        finetuning: how the part that is not frozen is trained.
        optimizer: a function from parameter groups to an optimizer.
        scheduler: a function from an optimizer, `epochs`, `steps`, `monitor` and `first_epochs` to a learning-rate
            schedule, or to None.
        monitor: the metric that chooses the best epoch, stops early and that ReduceLROnPlateau monitors; with None, the
            last epoch is the best.
        mixing: mixup or CutMix, applied to each training batch and its labels; see `build_mixing`.
        label_smoothing: the label smoothing of the training loss, in [0, 1).
        class_weights: the weight of each class in the training loss, shape (classes,); None weights all equally.
        description: plain values, saved in checkpoints as hyperparameters.

    Attributes:
        class_accuracy: the accuracy of each class, by split, from its last evaluation or training epoch; shape
            (classes,).
        evaluated_split: the split under whose name `test_step` logs.
        unfreezing: tracks which modules are frozen.
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
        monitor: str | None = "val/accuracy",
        mixing: nn.Module | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Convolutions are faster with the channels_last memory format.
        self.backbone, self.head = backbone.to(memory_format=torch.channels_last), head
        self.class_names = tuple(class_names)
        self.normalise = Normalisation(preprocessing) if preprocessing else None
        self.optimizer, self.scheduler, self.monitor = optimizer, scheduler, monitor
        self.mixing, self.label_smoothing = mixing, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.metrics = nn.ModuleDict({f"{split}_split": build_metrics(len(class_names)) for split in SPLITS})
        # Logits, labels and loss of the batches that the metrics have not been updated with yet.
        self._pending: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {split: [] for split in SPLITS}
        self.unfreezing = Unfreezing(backbone, freeze, finetuning)
        self._compiled = False
        self.class_accuracy: dict[str, Tensor] = {}
        self.evaluated_split = "test"
        if description is not None:
            self.save_hyperparameters(description, logger=False)
        hold_in_eval(self.unfreezing.frozen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint's state dict match this classifier, with or without a backbone in either.

        If only one of the two has the backbone, its tensors are added or dropped, provided that both have the same
        `backbone_sha256`. See `checkpoints.without_backbone`.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith(BACKBONE)}
        same = checkpoint.get("hyper_parameters", {}).get("backbone_sha256") == self.hparams.get("backbone_sha256")
        # Lightning's WeightAveraging adds "current_model_state".
        for key in {"state_dict", "current_model_state"} & checkpoint.keys():
            saved = {name for name in checkpoint[key] if name.startswith(BACKBONE)}
            if same and (not own or not saved):
                rest = {name: value for name, value in checkpoint[key].items() if name not in saved}
                checkpoint[key] = own | rest

    def train(self, mode: bool = True) -> TransferClassifier:
        """Set the training mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        hold_in_eval(self.unfreezing.frozen)
        return self

    def compile_backbone(self) -> None:
        """Compile the backbone at its first forward pass with `torch.compile`; its state dict keeps its names."""
        self.backbone.compile()
        self._compiled = True

    def setup(self, stage: str) -> None:
        """Check that unfreezing can work, before processes wait for each other's gradients.

        Raises:
            ConfigError: see `check_strategy` and `check_agreement`.
        """
        if stage == "fit" and self.unfreezing.finetuning.has_stages:
            check_strategy(self.trainer.strategy)
        if stage == "fit" and self.hparams.get("chosen"):
            check_agreement(self.hparams["chosen"]["strategy"])

    def on_train_epoch_start(self) -> None:
        """Unfreeze the blocks that are trained from this epoch on."""
        if self.unfreezing.begin_epoch(self.current_epoch, self.trainer.max_epochs or 0):
            self.train()
            rewrap(self.trainer.strategy)
            if self._compiled:  # every stage recompiles, and torch.compile stops after eight recompilations
                torch.compiler.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Args:
            images: preprocessed images of shape (batch, 3, height, width); uint8 images are normalised here. Or
                features of a frozen backbone, of shape (batch, num_features), which go straight to the head.

        Returns:
            Logits of shape (batch, number of classes).
        """
        features = images if images.ndim == 2 else self.backbone(self._normalised(images))
        logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Compute the loss to minimise, and add the batch to the training metrics."""
        images, labels = batch
        targets = labels  # with mixing, class probabilities of shape (batch, classes)
        if self.mixing is not None:
            images, targets = self.mixing(self._normalised(images), labels)
            labels = targets.argmax(dim=1)
        logits = self(images)
        loss = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=self.label_smoothing)
        self._add_batch("train", logits.detach(), labels, loss.detach())
        return loss

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or self.normalise is None:
            return images
        normalised: Tensor = self.normalise(images)
        return normalised.to(self.dtype)  # float64 with 64-true; float32 with mixed precision

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch to the validation metrics."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Add a batch to the metrics of `evaluated_split`, and return its logits of shape (batch, classes)."""
        return self._evaluate(self.evaluated_split, batch)

    def _evaluate(self, split: str, batch: Batch) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        self._add_batch(split, logits, labels, F.cross_entropy(logits, labels))
        return logits

    def _add_batch(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch, and update the metrics once there are about `PENDING_IMAGES` images.

        Updating the metrics at every step would take longer than the training step of a head.
        """
        pending = self._pending[split]
        pending.append((logits.float(), labels, loss))
        if len(pending) * len(labels) >= PENDING_IMAGES:
            self._update_metrics(split)

    def _update_metrics(self, split: str) -> None:
        if not self._pending[split]:
            return
        logits, labels, losses = zip(*self._pending[split], strict=True)
        self._pending[split].clear()
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
        """Return the names of the metrics logged for each split, without the split."""
        return tuple(str(name) for name in self._metrics_of("val") if name != "class_accuracy")

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch.

        They are computed from the training batches, so they include augmentation, dropout and weights that change.
        """
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of `evaluated_split`, including the accuracy of each class."""
        self._log(self.evaluated_split, per_class=True)

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """Compute and reset the metrics of a split.

        Args:
            split: "train", "val" or "test".

        Returns:
            Metric name, without the split -> value over all batches since the last call.
        """
        self._update_metrics(split)
        metrics = self._metrics_of(split)
        values = {name: metric.compute() for name, metric in metrics.items(keep_base=True)}
        metrics.reset()
        return values

    def _log(self, split: str, per_class: bool = False) -> None:
        values = self.compute_metrics(split)
        by_class = self.class_accuracy[split] = values.pop("class_accuracy")
        # After training, train and val are evaluated again; logging that would add a point to their curves.
        logged = not per_class or split == "test"
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, logger=logged)
        if per_class:
            named = zip(self.class_names, by_class, strict=True)
            self.log_dict({f"{split}/class_accuracy/{name}": value for name, value in named}, logger=False)

    def build_optimizer(self, **settings: Any) -> Optimizer:
        """Build the optimizer over all parameters that are ever trained; `settings` override its own, such as `lr`."""
        fitted = self.hparams.get("fitted_head") is not None
        return self.optimizer(self.unfreezing.parameter_groups(self.head, fitted=fitted), **settings)

    def set_optimizer(self, **settings: float) -> None:
        """Set settings, such as `lr`, of optimizers built from now on, and those recorded in checkpoints."""
        self.optimizer = partial(self.optimizer, **settings)
        self.hparams["optimizer"] = {**self.hparams["optimizer"], **settings}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all parameters that are ever trained, and its learning-rate schedule."""
        optimizer = self.build_optimizer(fused=can_fuse(self.trainer))
        schedule = self.scheduler(
            optimizer,
            epochs=self.trainer.max_epochs,
            steps=int(self.trainer.estimated_stepping_batches),
            monitor=self.monitor,
            first_epochs=self.unfreezing.finetuning.head_epochs,
        )
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}
