"""Distributed training: checks of the strategy, agreement of the processes, gathering of tensors."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from headstart.utils.errors import ConfigError


def check_strategy(strategy: Strategy) -> None:
    """Check that Lightning's strategy supports unfreezing during training.

    Raises:
        ConfigError: the strategy is neither DDP nor that of a single device.
    """
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ConfigError(
            f"trainer.strategy: unfreezing during training works with auto or ddp, not with {type(strategy).__name__}. "
            f"Choose one of them, or finetune=full, layer_decay or bn_frozen."
        )


def rewrap(strategy: Strategy) -> None:
    """Wrap the model in DistributedDataParallel again, after parameters were unfrozen; other strategies need nothing.

    DistributedDataParallel averages gradients only for parameters that required them when it was created. Parameters
    that are unfrozen later would silently diverge between the processes.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def check_agreement(choice: str) -> None:
    """Check that all processes of a run chose the same fine-tuning strategy, as each chooses for itself.

    Raises:
        ConfigError: the processes disagree; it is raised in all of them.
    """
    if not torch.distributed.is_initialized():
        return
    choices: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(choices, choice)
    if len(set(choices)) > 1:
        raise ConfigError(
            f"finetune=auto: the processes of this run have chosen differently: {', '.join(choices)}. Choose one: "
            f"finetune=NAME, or freeze=true."
        )


def gather_rows(shard: Tensor, world: int) -> Tensor:
    """Gather the rows of all processes, in the order of the images.

    Args:
        shard: the rows of this process, which are those of every `world`-th image, beginning with its rank.
        world: the number of processes.

    Returns:
        The rows of all images, shape (sum of the lengths, *shard.shape[1:]), in every process.
    """
    if world == 1:
        return shard
    shards: list[Any] = [None] * world
    torch.distributed.all_gather_object(shards, shard)
    rows = shard.new_empty(sum(map(len, shards)), *shard.shape[1:])
    for rank, part in enumerate(shards):
        rows[rank::world] = part
    return rows
