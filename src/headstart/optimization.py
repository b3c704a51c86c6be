"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from headstart.monitor import direction

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

BuildOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
BuildSchedule = Callable[..., LRSchedulerConfigType | None]


def build_optimizer(parameters: Iterable[nn.Parameter], name: str, **settings: Any) -> Optimizer:
    """An optimizer of torch over these parameters; `settings` are its arguments by torch's names."""
    return OPTIMIZERS[name](parameters, **settings)


def build_schedule(
    optimizer: Optimizer, name: str, *, epochs: int, steps: int, monitor: str, **settings: Any
) -> LRSchedulerConfigType | None:
    """A learning-rate schedule as Lightning takes it.

    Args:
        optimizer: whose rate is the highest of the schedule.
        name: none, plateau, step, cosine or onecycle.
        epochs: of the whole training.
        steps: optimizer steps of the whole training.
        monitor: the metric that "plateau" watches.
        **settings: the arguments of that schedule, as `conf/scheduler/` names them.

    Returns:
        Lightning's description of it, or None for "none".
    """
    match name:
        case "none":
            return None
        case "plateau":
            plateau = lr_scheduler.ReduceLROnPlateau(optimizer, mode=direction(monitor), **settings)
            return {"scheduler": plateau, "interval": "epoch", "monitor": monitor}
        case "step":
            step = lr_scheduler.StepLR(optimizer, settings["every"], settings["factor"])
            return {"scheduler": step, "interval": "epoch"}
        case "cosine":
            warmup = round(settings["warmup_epochs"] * steps / epochs)
            return {"scheduler": _cosine(optimizer, steps, warmup), "interval": "step"}
        case "onecycle":
            peaks = [float(group["lr"]) for group in optimizer.param_groups]
            cycle = lr_scheduler.OneCycleLR(
                optimizer,
                peaks,
                total_steps=steps,
                pct_start=settings["rise"],
                cycle_momentum=False,  # momentum stays what the optimizer's settings say
            )
            return {"scheduler": cycle, "interval": "step"}
    raise ValueError(f"no scheduler is called {name!r}")


def _cosine(optimizer: Optimizer, steps: int, warmup: int) -> lr_scheduler.LRScheduler:
    """Linear warm-up for some steps, then half a cosine to zero."""
    warmup = min(warmup, steps - 1)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warmup, 1))
    if warmup < 1:
        return fall
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])
