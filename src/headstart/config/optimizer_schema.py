"""Structured configs of the groups `optimizer` and `scheduler`."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.config.ranges import at_least, fraction, not_negative, or_auto, positive

USUAL_LR = 1e-3  # if `lr` is null: Adam's own (Kingma & Ba, arXiv:1412.6980)
USUAL_EPOCHS = 30  # if `epochs` is null; early stopping may stop sooner


@dataclass(kw_only=True)
class Optimizer:
    """The key of every optimizer."""

    name: str


@dataclass(kw_only=True)
class Auto(Optimizer):
    """The choice between L-BFGS and Adam, which is made before a run begins."""

    weight_decay: int | float | str | None = or_auto(not_negative())


@dataclass(kw_only=True)
class LBFGS(Optimizer):
    """L-BFGS, which fits a linear head on cached features to its optimum."""

    weight_decay: int | float | str = or_auto(not_negative())
    max_iter: int = at_least(1)


@dataclass(kw_only=True)
class Gradient(Optimizer):
    """A stochastic gradient method; Adam and AdamW have no other keys."""

    lr: int | float | str = or_auto(positive())
    weight_decay: float = not_negative()


@dataclass(kw_only=True)
class SGD(Gradient):
    """Stochastic gradient descent with momentum."""

    momentum: float = fraction(zero=True)
    nesterov: bool


@dataclass(kw_only=True)
class Scheduler:
    """The key of every scheduler; `none` keeps the learning rate constant."""

    name: str


@dataclass(kw_only=True)
class Plateau(Scheduler):
    """Reduce the learning rate when the monitored metric stops improving (`ReduceLROnPlateau`)."""

    factor: float = fraction(zero=False)
    patience: int = at_least(0)


@dataclass(kw_only=True)
class Step(Scheduler):
    """Multiply the learning rate by `gamma` every `step_size` epochs (`StepLR`)."""

    step_size: int = at_least(1)
    gamma: float = fraction(zero=False)


@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Warm the learning rate up linearly, then anneal it along a cosine."""

    warmup_epochs: float = not_negative()


@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Raise the learning rate to its maximum, then anneal it far below (`OneCycleLR`)."""

    pct_start: float = fraction(zero=False)
