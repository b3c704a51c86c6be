"""Training steps before the training, on a copy: the classifier and every random state stay as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision

from headstart.data.datamodule import Batch
from headstart.training.classifier import TransferClassifier


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Puts the random states of torch, on the CPU and every GPU, of numpy and of Python back when the block ends."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


class Rehearsal:
    """A copy of a classifier that takes the steps which a Trainer would take with it.

    Args:
        classifier: is copied, with what is frozen in it, and not touched.
        device: where to train.
        precision: the Trainer's plugin.
        lr: the optimizer's learning rate; groups keep their ratios to it.
        gradient_clip: the Trainer's `gradient_clip_val`: the largest norm of all gradients together.

    Attributes:
        optimizer: the copy's own, over what is not frozen.
    """

    def __init__(
        self,
        classifier: TransferClassifier,
        device: torch.device,
        precision: Precision,
        *,
        lr: float,
        gradient_clip: float | None = None,
    ) -> None:
        copied = precision.convert_module(deepcopy(classifier)).to(device)
        assert isinstance(copied, TransferClassifier)
        copied.unfreezing.unfreeze_all()  # to find a rate, and memory, for all that will ever train
        self.classifier = copied.train()
        self.optimizer = self.classifier.build_optimizer(lr=lr)
        self.device, self.precision, self.gradient_clip = device, precision, gradient_clip
        # Of 16-mixed. A copy: the scale that it finds here is not the one to start training with.
        self._scaler = deepcopy(getattr(precision, "scaler", None)) or torch.amp.GradScaler(enabled=False)

    def step(self, batch: Batch) -> float:
        """Takes an optimizer step, and gives the loss before it."""
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
