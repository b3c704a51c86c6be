"""Trial training steps on a copy of the classifier, which leave the classifier and all random states unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import lightning.pytorch as pl
import numpy as np
import torch

from headstart.data.datamodule import Batch
from headstart.training.classifier import TransferClassifier


@contextmanager
def preserve_random_states() -> Iterator[None]:
    """Restore the random states of torch (on the CPU and all GPUs), numpy and Python at the end of the block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class TrialTrainer:
    """A trainer of a copy of a classifier, which takes the same steps as Lightning's Trainer would.

    All blocks of the copy that are ever trained are unfrozen from the start.

    Args:
        classifier: the classifier to copy; it is not modified.
        trainer: gives device, precision and `gradient_clip_val`, the maximum norm of all gradients together.
        lr: the optimizer's learning rate; parameter groups keep their ratios to it.

    Attributes:
        classifier: the copy, on the device and in training mode.
        optimizer: the optimizer of the copy, over all parameters that are ever trained.
    """

    def __init__(self, classifier: TransferClassifier, trainer: pl.Trainer, *, lr: float) -> None:
        self.device, self.precision = trainer.strategy.root_device, trainer.precision_plugin
        self.gradient_clip = trainer.gradient_clip_val
        copy = self.precision.convert_module(deepcopy(classifier)).to(self.device)
        assert isinstance(copy, TransferClassifier)
        copy.unfreezing.unfreeze_all()  # measure with everything that will ever be trained
        self.classifier = copy.train()
        self.optimizer = self.classifier.build_optimizer(lr=lr)
        # The GradScaler of 16-mixed; a copy, so that training does not start with the scale reached here.
        self._scaler = deepcopy(getattr(self.precision, "scaler", None)) or torch.amp.GradScaler(enabled=False)

    def step(self, batch: Batch) -> float:
        """Take an optimizer step, and return the loss before it.

        Args:
            batch: images or features, and labels, on any device.
        """
        images, labels = (part.to(self.device, non_blocking=True) for part in batch)
        self.optimizer.zero_grad()
        with self.precision.forward_context():
            loss = self.classifier.training_step((self.precision.convert_input(images), labels), 0)
        self._scaler.scale(loss).backward()
        if self.gradient_clip:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.classifier.parameters(), self.gradient_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss.item()
