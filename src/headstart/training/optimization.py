"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer, lr_scheduler

from headstart.models.unfreezing import ParameterGroup
from headstart.utils.metrics import direction

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SHORTEST_CYCLE = 4  # steps: those of a shorter one have rates next to nothing


BuildOptimizer = Callable[..., Optimizer]  # of groups; a keyword such as `lr` beats the setting
BuildSchedule = Callable[..., LRSchedulerConfigType | None]


def build_optimizer(
    groups: Sequence[ParameterGroup],
    name: str,
    *,
    lr: float,
    weight_decay: float = 0.0,
    fused: bool = False,
    **settings: Any,
) -> Optimizer:
    """An optimizer of torch.

    Args:
        groups: what it trains.
        name: adam, adamw or sgd.
        lr: the learning rate of a group whose share is 1.
        weight_decay: of all but biases and the scales and shifts of normalisations, that is of what has more than one
            dimension: shrinking those does not regularise (He et al., arXiv:1812.01187, section 3.1).
        fused: one kernel for all parameters of a group: see `can_fuse`.
        **settings: its other arguments by torch's names.
    """
    if fused:
        settings["fused"] = True
    parts: list[dict[str, Any]] = []
    for group in groups:
        weights = [p for p in group.parameters if p.dim() > 1 or not weight_decay]
        others = [p for p in group.parameters if p.dim() <= 1 and weight_decay]
        if weights:
            parts.append({"name": group.name, "params": weights, "lr": lr * group.rate})
        if others:
            part = {"name": f"{group.name}, no decay", "params": others, "lr": lr * group.rate, "weight_decay": 0.0}
            parts.append(part)
    if len(parts) == 1:
        del parts[0]["name"]  # the chart of the only rate is that of the optimizer
    return OPTIMIZERS[name](parts, lr=lr, weight_decay=weight_decay, **settings)


def can_fuse(trainer: pl.Trainer) -> bool:
    """Whether the optimizer may take a fused step: on a GPU, unless clipping needs the gradients that it unscales."""
    clips = trainer.gradient_clip_val is not None and trainer.precision == "16-mixed"
    return trainer.strategy.root_device.type == "cuda" and not clips


def build_schedule(
    optimizer: Optimizer, name: str, *, epochs: int, steps: int, monitor: str, first_epochs: int = 0, **settings: Any
) -> LRSchedulerConfigType | None:
    """A learning-rate schedule as Lightning takes it.

    Args:
        optimizer: whose rate is the highest of the schedule.
        name: none, plateau, step, cosine or onecycle.
        epochs: of the whole training.
        steps: optimizer steps of the whole training.
        monitor: the metric that "plateau" watches.
        first_epochs: epochs in which the head trains alone. What unfreezes after them has not moved yet: "cosine" and
            "onecycle" then begin anew, rise included, as fastai's `fine_tune` does (Howard & Gugger, arXiv:2002.04688).
        **settings: the arguments of that schedule, as `conf/scheduler/` names them.

    Returns:
        Lightning's description of it, or None for "none".
    """
    first = round(steps * first_epochs / epochs)
    cycles = [first, steps - first] if SHORTEST_CYCLE <= first < steps else [steps]
    match name:
        case "none":
            return None
        case "plateau":
            plateau = lr_scheduler.ReduceLROnPlateau(optimizer, mode=direction(monitor), **settings)
            return {"scheduler": plateau, "interval": "epoch", "monitor": monitor}
        case "step":
            step = lr_scheduler.StepLR(optimizer, settings["step_size"], settings["gamma"])
            return {"scheduler": step, "interval": "epoch"}
        case "cosine":
            warmup = round(settings["warmup_epochs"] * steps / epochs)
            parts = [part for length in cycles for part in _cosine(optimizer, length, warmup)]
            return {"scheduler": _in_turn(optimizer, parts), "interval": "step"}
        case "onecycle":
            peaks = [float(group["lr"]) for group in optimizer.param_groups]
            parts = [(_one_cycle(optimizer, peaks, length, settings["pct_start"]), length) for length in cycles]
            return {"scheduler": _in_turn(optimizer, parts), "interval": "step"}
    raise ValueError(f"no scheduler is called {name!r}")


Part = tuple[lr_scheduler.LRScheduler, int]  # of a schedule, and how many steps it takes


def _cosine(optimizer: Optimizer, steps: int, warmup: int) -> list[Part]:
    """Linear warm-up for some steps, half of all at most, then half a cosine to zero."""
    warmup = min(warmup, steps // 2)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
    if warmup < 1:
        return [(fall, steps)]
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return [(rise, warmup), (fall, steps - warmup)]


def _one_cycle(optimizer: Optimizer, peaks: list[float], steps: int, pct_start: float) -> lr_scheduler.LRScheduler:
    if pct_start * steps == 1:  # of no length, by which torch divides
        pct_start *= 1 + 1e-9
    return lr_scheduler.OneCycleLR(
        optimizer,
        peaks,
        total_steps=steps,
        pct_start=pct_start,
        cycle_momentum=False,  # momentum stays what the optimizer's settings say
    )


def _in_turn(optimizer: Optimizer, parts: list[Part]) -> lr_scheduler.LRScheduler:
    schedules, lengths = zip(*parts, strict=True)
    if len(parts) == 1:
        only: lr_scheduler.LRScheduler = schedules[0]
        return only
    return lr_scheduler.SequentialLR(optimizer, list(schedules), milestones=list(accumulate(lengths[:-1])))


def schedule_length(scheduler: str, epochs: int, *, images_a_step: int, unfreezes: bool) -> dict[str, int]:
    """What a schedule is made for, where that shapes it: it cannot be resumed with other numbers.

    Args:
        scheduler: its name.
        epochs: of the whole training.
        images_a_step: which, with the images, makes the number of steps.
        unfreezes: whether the backbone unfreezes by a share of the epochs.
    """
    if scheduler in ("cosine", "onecycle"):
        return {"epochs": epochs, "images_a_step": images_a_step}
    return {"epochs": epochs} if unfreezes else {}
