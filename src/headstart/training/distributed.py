"""What several processes that train together have to agree on."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from headstart.utils.errors import ConfigError


def check_strategy(strategy: Strategy) -> None:
    """Makes sure that what is frozen can change during training.

    Raises:
        ConfigError: it cannot with this strategy of Lightning's.
    """
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ConfigError(
            f"trainer.strategy: unfreezing during training works with auto or ddp, not with {type(strategy).__name__}. "
            f"Choose one of them, or finetune=full, layer_decay or bn_frozen."
        )


def renew(strategy: Strategy) -> None:
    """Tells the processes of a run that other parameters have gradients now.

    DistributedDataParallel averages the gradients of what had any when it was made, and of nothing else: what unfreezes
    later would drift apart from process to process, in silence.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def check_agreement(choice: str) -> None:
    """Makes sure that all processes of a run have chosen the same strategy, as each looks for itself.

    Raises:
        ConfigError: they have not; in every one of them.
    """
    if not torch.distributed.is_initialized():
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, choice)
    if len(set(found)) > 1:
        raise ConfigError(
            f"finetune=auto: the processes of this run have chosen differently: {', '.join(found)}. Choose one: "
            f"finetune=NAME, or freeze=true."
        )


def gathered(share: Tensor, world: int) -> Tensor:
    """The rows of all processes in the order of the images, of which each process has every `world`-th."""
    if world == 1:
        return share
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, share)
    whole = share.new_empty(sum(map(len, shares)), *share.shape[1:])
    for rank, part in enumerate(shares):
        whole[rank::world] = part
    return whole
