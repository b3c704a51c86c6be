"""Gradual unfreezing: the parts of a backbone that train in each epoch, and their learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from headstart.models.backbone import Backbone
from headstart.models.blocks import blocks_of
from headstart.models.freezing import freeze_backbone, freeze_batchnorm
from headstart.models.head import FittedHead


@dataclass(frozen=True)
class Finetuning:
    """Settings of fine-tuning; the default trains everything that is not frozen from the start, at one learning rate.

    Attributes:
        head_epochs: number of epochs at the start in which only the head trains.
        unfrozen_by: fraction of the remaining epochs during which blocks are unfrozen one by one, from the last to the
            first; 0 unfreezes all blocks at once.
        backbone_lr: learning rate of the backbone, as a fraction of the head's.
        layer_decay: factor by which the learning rate decreases from each block to the block in front of it, beginning
            at the head.
        batchnorm: "train", or "frozen" to keep statistics, scale and shift of every BatchNorm in the backbone constant.
    """

    head_epochs: int = 0
    unfrozen_by: float = 0.0
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    batchnorm: str = "train"

    @property
    def has_stages(self) -> bool:
        """Return whether parts of the backbone are unfrozen during training."""
        return self.head_epochs > 0 or self.unfrozen_by > 0

    def unfrozen(self, blocks: int, epoch: int, epochs: int) -> int:
        """Return how many blocks, counted from the last, train in an epoch, counted from 0, of `epochs` in all."""
        if epoch < self.head_epochs:
            return 0
        stages = max(1, math.ceil(self.unfrozen_by * (epochs - self.head_epochs)))
        return min(blocks, math.ceil(blocks * (epoch - self.head_epochs + 1) / stages))


class Unfreezing:
    """A schedule that freezes and unfreezes parts of a backbone.

    The frozen part depends on the epoch only, so that a resumed run needs no further state.

    Args:
        backbone: the backbone, which is frozen in place.
        freeze: part of the backbone that stays frozen permanently; see `freeze_backbone`.
        finetuning: settings for the other parts.

    Attributes:
        frozen: modules that are frozen completely at present; see `hold_in_eval`.
    """

    def __init__(self, backbone: nn.Module, freeze: bool | str, finetuning: Finetuning) -> None:
        self.backbone, self.finetuning = backbone, finetuning
        self._permanent = freeze_backbone(backbone, freeze)
        if finetuning.batchnorm == "frozen":
            self._permanent += freeze_batchnorm(backbone)
        self._trainable = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self._blocks = [
            block for block in blocks_of(backbone) if not self._trainable.keys().isdisjoint(block.parameters)
        ]
        self.frozen: list[nn.Module] = []
        self._unfreeze(0 if finetuning.has_stages else len(self._blocks))

    def begin_epoch(self, epoch: int, epochs: int) -> bool:
        """Unfreeze the blocks that train in an epoch, counted from 0, of `epochs` in all, and freeze the others.

        Returns:
            Whether the number of unfrozen blocks has changed.
        """
        count = self.finetuning.unfrozen(len(self._blocks), epoch, epochs)
        changed = count != self._unfrozen
        if changed:
            self._unfreeze(count)
        return changed

    @property
    def is_complete(self) -> bool:
        """Return whether everything that is not frozen permanently is unfrozen."""
        return self._unfrozen == len(self._blocks)

    def unfreeze_all(self) -> None:
        """Unfreeze all blocks that are not frozen permanently."""
        self._unfreeze(len(self._blocks))

    def _unfreeze(self, count: int) -> None:
        self._unfrozen = count
        for parameter in self._trainable.values():
            parameter.requires_grad_()
        below = self._blocks[: len(self._blocks) - count]
        head_alone = count == 0 and self.finetuning.has_stages  # freezes what follows the last block, too
        up_to = True if head_alone else below[-1].name if below else False
        self.frozen = [*self._permanent, *freeze_backbone(self.backbone, up_to)]

    def parameter_groups(self, head: nn.Module, *, fitted: bool = False) -> list[ParameterGroup]:
        """Return all parameters that are not frozen permanently, grouped by learning rate.

        Parameters that are frozen temporarily are included; they have no gradients until they are unfrozen.

        Args:
            head: the head.
            fitted: whether the head starts at its optimum. Then its rate is that of the backbone, as in linear probing,
                then fine-tuning (Kumar et al., arXiv:2202.10054): larger steps would lead away from it.

        Returns:
            The groups, from the head to the first block; one group called "all" if there is only one learning rate.
        """
        groups = [ParameterGroup("head", list(head.parameters()), self.finetuning.backbone_lr if fitted else 1.0)]
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
    """A group of parameters with its own learning rate.

    Attributes:
        name: name of the group in charts of learning rates.
        parameters: the parameters.
        rate: learning rate of the group, as a fraction of the optimizer's.
    """

    name: str
    parameters: list[nn.Parameter]
    rate: float


class Strategy(NamedTuple):
    """The weights that a run starts from, and the parts that it trains.

    Attributes:
        backbone: the backbone, with pretrained weights, or with random ones if `finetune=auto` has measured that the
            pretrained ones do not help.
        freeze: part of the backbone that stays frozen; see `freezing.freeze_backbone`.
        finetuning: settings for the parts that are not frozen.
        head: the head that training starts from; None for one with random weights.
    """

    backbone: Backbone
    freeze: bool | str
    finetuning: Finetuning
    head: FittedHead | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Return those of a fitted head; see `FittedHead.metrics`."""
        return self.head.metrics if self.head else {}
