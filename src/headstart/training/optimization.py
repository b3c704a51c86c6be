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
SHORTEST_CYCLE = 4  # steps; in a shorter cycle, learning rates are close to 0


BuildOptimizer = Callable[..., Optimizer]  # takes parameter groups; a keyword such as `lr` overrides the setting
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
    """Build an optimizer from `torch.optim`.

    Args:
        groups: the parameters to train.
        name: "adam", "adamw" or "sgd".
        lr: the learning rate of a group whose `rate` is 1.
        weight_decay: the weight decay of parameters with more than one dimension. Biases and the scales and shifts of
            normalisation layers get none, as decaying them does not regularise (He et al., arXiv:1812.01187, section
            3.1).
        fused: use torch's fused implementation; see `can_fuse`.
        **settings: further arguments of the optimizer, by torch's names.
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
        del parts[0]["name"]  # LearningRateMonitor then names the only curve after the optimizer
    return OPTIMIZERS[name](parts, lr=lr, weight_decay=weight_decay, **settings)


def can_fuse(trainer: pl.Trainer) -> bool:
    """Return whether the optimizer may be fused: on a GPU, unless gradients are clipped with mixed precision.

    A fused optimizer unscales the gradients of 16-mixed itself, so that they could not be clipped before. Lightning
    refuses to clip those of bf16-mixed, too, though nothing scales them.
    """
    clips = trainer.gradient_clip_val is not None and "mixed" in str(trainer.precision)
    return trainer.strategy.root_device.type == "cuda" and not clips


def build_schedule(
    optimizer: Optimizer,
    name: str,
    *,
    epochs: int,
    steps: int,
    monitor: str | None,
    first_epochs: int = 0,
    **settings: Any,
) -> LRSchedulerConfigType | None:
    """Build a learning-rate schedule in the form that Lightning expects.

    Args:
        optimizer: the optimizer, whose learning rates are the highest of the schedule.
        name: "none", "plateau", "step", "cosine" or "onecycle".
        epochs: the number of epochs of the whole training.
        steps: the number of optimizer steps of the whole training.
        monitor: the metric that "plateau" monitors; no other schedule needs one.
        first_epochs: the number of epochs in which only the head is trained. Then "cosine" and "onecycle" start again,
            with their warm-up, for the layers that were frozen. fastai's `fine_tune` does the same (Howard & Gugger,
            arXiv:2002.04688).
        **settings: the arguments of the schedule, named as in `conf/scheduler/`.

    Returns:
        Lightning's scheduler config, or None for "none".

    Raises:
        ValueError: there is no schedule of this name.
    """
    first = round(steps * first_epochs / epochs)
    cycles = [first, steps - first] if SHORTEST_CYCLE <= first < steps else [steps]
    match name:
        case "none":
            return None
        case "plateau":
            assert monitor is not None
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


Part = tuple[lr_scheduler.LRScheduler, int]  # one of the consecutive schedulers, and its number of steps


def _cosine(optimizer: Optimizer, steps: int, warmup: int) -> list[Part]:
    """Build a linear warm-up, of at most half of the steps, followed by cosine annealing to zero."""
    warmup = min(warmup, steps // 2)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
    if warmup < 1:
        return [(fall, steps)]
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return [(rise, warmup), (fall, steps - warmup)]


def _one_cycle(optimizer: Optimizer, peaks: list[float], steps: int, pct_start: float) -> lr_scheduler.LRScheduler:
    if pct_start * steps == 1:  # torch would divide by the length of the rise, which is 0
        pct_start *= 1 + 1e-9
    return lr_scheduler.OneCycleLR(
        optimizer,
        peaks,
        total_steps=steps,
        pct_start=pct_start,
        cycle_momentum=False,  # keep the momentum of the optimizer's settings
    )


def _in_turn(optimizer: Optimizer, parts: list[Part]) -> lr_scheduler.LRScheduler:
    schedules, lengths = zip(*parts, strict=True)
    if len(parts) == 1:
        only: lr_scheduler.LRScheduler = schedules[0]
        return only
    return lr_scheduler.SequentialLR(optimizer, list(schedules), milestones=list(accumulate(lengths[:-1])))


def schedule_hyperparameters(scheduler: str, epochs: int, *, unfreezes: bool) -> dict[str, int | None]:
    """Return what else the schedule depends on; a run can only be resumed with the same values.

    Args:
        scheduler: the name of the schedule.
        epochs: the number of epochs of the whole training.
        unfreezes: whether the backbone is unfrozen over a fraction of the epochs.

    Returns:
        For "cosine" and "onecycle", `epochs` and `images_a_step`, the number of images per optimizer step in all
        processes, which is None until it is known. Otherwise `epochs` if `unfreezes`, else nothing.
    """
    if scheduler in ("cosine", "onecycle"):
        return {"epochs": epochs, "images_a_step": None}
    return {"epochs": epochs} if unfreezes else {}
