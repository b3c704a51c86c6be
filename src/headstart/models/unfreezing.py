"""Unfreezing: which part of a backbone trains in which epoch, and at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from headstart.models.backbone import Backbone
from headstart.models.blocks import blocks_of
from headstart.models.freezing import freeze_backbone, freeze_batchnorm


@dataclass(frozen=True)
class Finetuning:
    """Settings of fine-tuning; the default trains all that is not frozen from the start, at one learning rate.

    Attributes:
        head_epochs: epochs in which the head trains alone.
        unfrozen_by: fraction of the remaining epochs after which everything is unfrozen, block by block from the top;
            0 unfreezes everything at once.
        backbone_lr: the backbone's learning rate, as a fraction of the head's.
        layer_decay: factor between the learning rates of a block and the one above it; the head is the topmost.
        batchnorm: "train", or "frozen" for its statistics, scale and shift to stay what they are.
    """

    head_epochs: int = 0
    unfrozen_by: float = 0.0
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    batchnorm: str = "train"

    @property
    def has_stages(self) -> bool:
        """Whether what is frozen changes during training."""
        return self.head_epochs > 0 or self.unfrozen_by > 0

    def unfrozen(self, blocks: int, epoch: int, epochs: int) -> int:
        """How many of the blocks, counted from the top, train in an epoch, counted from 0."""
        if epoch < self.head_epochs:
            return 0
        stages = max(1, math.ceil(self.unfrozen_by * (epochs - self.head_epochs)))
        return min(blocks, math.ceil(blocks * (epoch - self.head_epochs + 1) / stages))


class Unfreezing:
    """Freezes and unfreezes parts of a backbone by the epoch.

    What is frozen follows from the epoch alone, so that a resumed run needs nothing else.

    Args:
        backbone: frozen in place.
        freeze: what stays frozen for good; see `freeze_backbone`.
        finetuning: how the rest is trained.
    """

    def __init__(self, backbone: nn.Module, freeze: bool | str, finetuning: Finetuning) -> None:
        self.backbone, self.finetuning = backbone, finetuning
        self._for_good = freeze_backbone(backbone, freeze)
        if finetuning.batchnorm == "frozen":
            self._for_good += freeze_batchnorm(backbone)
        self._trainable = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self._blocks = [
            block for block in blocks_of(backbone) if not self._trainable.keys().isdisjoint(block.parameters)
        ]
        self.frozen: list[nn.Module] = []  # modules that are frozen with everything in them
        self._unfreeze(0 if finetuning.has_stages else len(self._blocks))

    def begin_epoch(self, epoch: int, epochs: int) -> bool:
        """Unfreezes what trains in an epoch, if that is not done yet.

        Args:
            epoch: counted from 0.
            epochs: of the whole training.

        Returns:
            Whether that changed anything.
        """
        count = self.finetuning.unfrozen(len(self._blocks), epoch, epochs)
        changed = count != self._unfrozen
        if changed:
            self._unfreeze(count)
        return changed

    @property
    def is_complete(self) -> bool:
        """Whether all that ever trains is unfrozen."""
        return self._unfrozen == len(self._blocks)

    def unfreeze_all(self) -> None:
        """Unfreezes all that ever trains."""
        self._unfreeze(len(self._blocks))

    def _unfreeze(self, count: int) -> None:
        self._unfrozen = count
        for parameter in self._trainable.values():
            parameter.requires_grad_()
        below = self._blocks[: len(self._blocks) - count]
        head_alone = count == 0 and self.finetuning.has_stages  # with all that follows the last block
        up_to = True if head_alone else below[-1].name if below else False
        self.frozen = [*self._for_good, *freeze_backbone(self.backbone, up_to)]

    def parameter_groups(self, head: nn.Module) -> list[ParameterGroup]:
        """Returns all parameters that ever train, by learning rate; while frozen, they have no gradients."""
        groups = [ParameterGroup("head", list(head.parameters()), 1.0)]
        for depth, block in enumerate(reversed(self._blocks), start=1):
            rate = self.finetuning.backbone_lr * self.finetuning.layer_decay**depth
            parameters = [self._trainable[name] for name in block.parameters if name in self._trainable]
            if rate == groups[-1].rate:
                groups[-1].parameters.extend(parameters)
            else:
                groups.append(ParameterGroup(block.name, parameters, rate))
        return groups if len(groups) > 1 else [replace(groups[0], name="all")]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own.

    Attributes:
        name: for the chart of learning rates.
        parameters: that train together.
        rate: their learning rate, as a fraction of the optimizer's.
    """

    name: str
    parameters: list[nn.Parameter]
    rate: float


class Strategy(NamedTuple):
    """What of a network trains, and how.

    Attributes:
        backbone: with its pretrained weights, or with random ones where `finetune=auto` finds those useless.
        freeze: see `freezing.freeze_backbone`.
        finetuning: of what is not frozen.
    """

    backbone: Backbone
    freeze: bool | str
    finetuning: Finetuning
