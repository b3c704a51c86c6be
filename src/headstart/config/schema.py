"""The schema of the control panel: every key, its type and its range. The values stand in `conf/`, once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from headstart.config.data_schema import Data
from headstart.config.ranges import at_least, batches, fraction, not_negative, or_auto, positive, within

# --- model ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Model:
    """A backbone: which library builds it, its name there, and its weights (default, null or a path)."""

    library: Literal["headstart", "torchvision", "timm"]
    name: str
    weights: str | None


@dataclass(kw_only=True)
class Head:
    """What every head takes."""

    name: str


@dataclass(kw_only=True)
class MLP(Head):
    """A hidden layer in front of the classes."""

    hidden: int = at_least(1)
    dropout: float = fraction(zero=True)


@dataclass(kw_only=True)
class Loss:
    """Cross-entropy on logits."""

    label_smoothing: float = fraction(zero=True)
    class_weights: Literal["balanced"] | None


# --- training ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Augment:
    """A random training transform without arguments of its own."""

    name: str
    random_erasing: float = within(lambda value: 0 <= value <= 1, "a number from 0 to 1")
    mixup: float = within(lambda value: 0 <= value < float("inf"), "a number of at least 0")
    cutmix: float = within(lambda value: 0 <= value < float("inf"), "a number of at least 0")

    @property
    def is_random(self) -> bool:
        """Whether an image has more than one view."""
        return self.name != "none" or self.random_erasing > 0

    def of_images(self) -> dict[str, Any]:
        """The arguments of `training_transform`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("mixup", "cutmix")}


@dataclass(kw_only=True)
class PadCrop(Augment):
    """Pad and crop back to size at a random place."""

    padding: int = at_least(1)


@dataclass(kw_only=True)
class RandomResizedCrop(Augment):
    """Crop a random part; `scale` is the smallest share of the image's area."""

    scale: float = within(lambda value: 0 < value <= 1, "a number above 0 and at most 1")


@dataclass(kw_only=True)
class Caltech(RandomResizedCrop):
    """Crop, rotation, colour, flip."""

    degrees: float = not_negative()
    color_jitter: float = fraction(zero=True)


@dataclass(kw_only=True)
class RandAugment(RandomResizedCrop):
    """Crop, flip and RandAugment."""

    num_ops: int = at_least(1)
    magnitude: int = within(lambda value: 0 <= value <= 30, "a whole number from 0 to 30")


@dataclass(kw_only=True)
class Finetune:
    """How what is not frozen is trained."""

    name: Literal["none", "full", "head_then_full", "gradual", "layer_decay", "bn_frozen", "auto"] = "none"
    head_epochs: int = within(lambda value: value >= 0, "a whole number of at least 0", default=0)
    unfrozen_by: float = within(lambda value: 0 <= value <= 1, "a number from 0 to 1", default=0.0)
    backbone_lr: float = within(lambda value: 0 < value < float("inf"), "a number above 0", default=1.0)
    layer_decay: float = within(lambda value: 0 < value <= 1, "a number above 0 and at most 1", default=1.0)
    batchnorm: Literal["train", "frozen"] = "train"

    def settings(self) -> dict[str, Any]:
        """The arguments of `Finetuning`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    def changed(self) -> dict[str, Any]:
        """Those of them that are not their defaults: of auto, what was set beside it."""
        return {name: value for name, value in self.settings().items() if value != getattr(Finetune(), name)}


@dataclass(kw_only=True)
class Optimizer:
    """What every optimizer takes."""

    name: str
    lr: int | float | str = or_auto(positive())
    weight_decay: float = not_negative()


@dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent."""

    momentum: float = fraction(zero=True)
    nesterov: bool


@dataclass(kw_only=True)
class Scheduler:
    """No change of the learning rate."""

    name: str


@dataclass(kw_only=True)
class Plateau(Scheduler):
    """Lower the rate when the monitored value stops improving."""

    factor: float = fraction(zero=False)
    patience: int = at_least(0)


@dataclass(kw_only=True)
class Step(Scheduler):
    """Lower the rate every few epochs."""

    step_size: int = at_least(1)
    gamma: float = fraction(zero=False)


@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Warm up linearly, then fall along a cosine."""

    warmup_epochs: float = not_negative()


@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Rise to the rate and fall far below it, once."""

    pct_start: float = fraction(zero=False)


@dataclass(kw_only=True)
class Features:
    """A frozen backbone runs every epoch."""

    name: str


@dataclass(kw_only=True)
class CachedFeatures(Features):
    """A backbone runs once while it is frozen; its outputs are kept."""

    engine: Literal["auto", "eager", "folded", "onnx"]
    views: int = at_least(1)
    max_gb: float = positive()


@dataclass(kw_only=True)
class Trainer:
    """Arguments of Lightning's Trainer, by its own names."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: int | str
    num_nodes: int = at_least(1)
    strategy: str
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]
    max_epochs: int = at_least(1)
    gradient_clip_val: float | None = positive()
    accumulate_grad_batches: int = at_least(1)
    deterministic: bool
    fast_dev_run: bool
    limit_train_batches: int | float = batches()
    limit_val_batches: int | float = batches()
    limit_test_batches: int | float = batches()
    log_every_n_steps: int = at_least(1)
    num_sanity_val_steps: int = at_least(0)
    detect_anomaly: bool
    enable_progress_bar: bool


@dataclass(kw_only=True)
class EarlyStopping:
    """Stop when the monitored value has not improved for `patience` epochs."""

    patience: int = at_least(1)
    min_delta: float = not_negative()


@dataclass(kw_only=True)
class Callbacks:
    """What watches the run; null leaves it out."""

    early_stopping: EarlyStopping | None
    checkpoint: bool
    learning_rate: bool
    ema: float | None = within(lambda value: 0 < value < 1, "a number between 0 and 1")


@dataclass(kw_only=True)
class Logger:
    """Where the scalars go."""

    tensorboard: bool = False
    csv: bool = False


@dataclass(kw_only=True)
class Sweep:
    """How a sweep runs its jobs; the defaults are for config.yaml of runs, which leave it out."""

    name: str | None = None
    parallel: int = within(lambda value: value >= 1, "a whole number of at least 1", default=1)
    allow_failures: bool = False
    sample: int | None = within(lambda value: value >= 1, "a whole number of at least 1", default=None)
    trials: int = within(lambda value: value >= 1, "a whole number of at least 1", default=20)
    storage: str | None = None


@dataclass(kw_only=True)
class Config:
    """The whole control panel, checked and typed."""

    freeze: bool | str = field(metadata={"words": "true, false or the name of the last block to freeze"})
    epochs: int = at_least(1)
    batch_size: int | str | None = or_auto(at_least(1))
    lr: int | float | str = or_auto(positive())
    seed: int = within(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
    monitor: str = within(
        lambda value: re.fullmatch(r"(train|val)/[a-z0-9_]+", value) is not None,
        "a metric of train or val, such as val/accuracy or val/loss",
    )
    ckpt_path: str | None
    compile: bool
    report: bool | str = within(lambda value: value in (True, False, "auto"), "auto, true or false")
    data: Data
    model: Model
    head: Head
    loss: Loss
    augment: Augment
    finetune: Finetune
    optimizer: Optimizer
    scheduler: Scheduler
    features: Features
    trainer: Trainer
    callbacks: Callbacks
    logger: Logger
    sweep: Sweep = field(default_factory=Sweep)
