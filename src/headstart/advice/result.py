"""What is known of each backbone after a comparison, and which one is recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headstart.config.schema import Model


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its 95 % interval; fractions in [0, 1].

    Attributes:
        value: the accuracy.
        low: lower limit.
        high: upper limit.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """A backbone that may be chosen.

    Attributes:
        name: as the user names it, such as "resnet18", "timm/vit_small_patch16_224" or "mobilenet_v2@FILE".
        overrides: those that select it, such as "model=resnet18".
        model: the config group that builds it; None if there is no such network.
        problem: why it cannot be measured; empty if it can.
        parameters: number of parameters without the classifier; None if unknown.
        megabytes: size of its weights, in 10^6 bytes; None if unknown.
        image_size: width and height in pixels of its input; None if unknown.
        licence: of the weights; None if unknown.
        images_per_second: rate of its forward pass on this machine, without decoding; None until it is measured.
        published: top-1 accuracy on ImageNet-1k that the library states, a fraction; None if it states none.
    """

    name: str
    overrides: tuple[str, ...]
    model: Model | None = None
    problem: str = ""
    parameters: int | None = None
    megabytes: float | None = None
    image_size: int | None = None
    licence: str | None = None
    published: float | None = None
    images_per_second: float | None = None

    @property
    def label(self) -> str:
        """Return the name without the folders of a file of weights."""
        network, separator, weights = self.name.partition("@")
        return f"{network}{separator}{Path(weights).name}"


@dataclass(frozen=True)
class Measured:
    """What a sample of the images says about a backbone.

    Attributes:
        candidate: the backbone.
        images: number of images of the sample.
        accuracy: of answers for images that the head was not fitted to, in the sample.
        fitted: whether a fitted head gave the answers; False for the closed form of ridge regression.
        curve: accuracy by number of images to fit to, smallest first; its last entry is that of all training images,
            if it is at most twice the sample.
        may_be_best: whether it cannot be told from the best one.
    """

    candidate: Candidate
    images: int
    accuracy: Estimate
    fitted: bool
    curve: Sequence[tuple[int, Estimate]]
    may_be_best: bool

    @property
    def rate(self) -> float:
        """Return the images a second of its forward pass on this machine."""
        assert self.candidate.images_per_second is not None
        return self.candidate.images_per_second


@dataclass(frozen=True)
class Advice:
    """The result of a comparison of backbones.

    Attributes:
        measured: the backbones that were measured, the most accurate first.
        others: those that were not, each with its problem.
        recommended: the one to take: the cheapest of those that cannot be told from the best.
        reason: why, in a sentence.
        images: number of training images.
        classes: number of classes.
        strategy: how to fine-tune, as `finetune=auto` decides; see `StrategyChoice`.
        command: the command that trains next.
        notes: what was left out, and why.
    """

    measured: list[Measured]
    others: list[Candidate]
    recommended: Measured
    reason: str
    images: int
    classes: int
    strategy: str
    command: str
    notes: list[str] = field(default_factory=list)
