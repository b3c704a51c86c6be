"""Structured configs: every key, its type and its range; the values are in `conf/`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from headstart.config.data_schema import Data
from headstart.config.optimizer_schema import LBFGS, Optimizer, Scheduler
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
    """The keys of every head; the linear head has no others."""

    name: str


@dataclass(kw_only=True)
class MLP(Head):
    """A head with one hidden layer."""

    hidden: int = at_least(1)
    dropout: float = fraction(zero=True)


@dataclass(kw_only=True)
class Loss:
    """The cross-entropy loss on logits."""

    label_smoothing: float = fraction(zero=True)
    class_weights: Literal["balanced"] | None
    mixup: float = not_negative()
    cutmix: float = not_negative()

    @property
    def mixes(self) -> bool:
        """Tell whether training batches are mixed, by MixUp or CutMix; this needs the images, not their features."""
        return self.mixup > 0 or self.cutmix > 0


# --- training ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Augment:
    """The keys of every augmentation; `none` and `flip` have no others."""

    name: str
    random_erasing: float = within(lambda value: 0 <= value <= 1, "a number from 0 to 1")

    @property
    def is_random(self) -> bool:
        """Tell whether the training transform is random, so that an image has more than one view."""
        return self.name != "none" or self.random_erasing > 0


@dataclass(kw_only=True)
class PadCrop(Augment):
    """Pad, then crop back to size at a random position."""

    padding: int = at_least(1)


@dataclass(kw_only=True)
class RandomResizedCrop(Augment):
    """Crop at a random position and resize; `scale` is the smallest fraction of the image's area."""

    scale: float = within(lambda value: 0 < value <= 1, "a number above 0 and at most 1")


@dataclass(kw_only=True)
class Caltech(RandomResizedCrop):
    """Random crop, rotation, color jitter and flip, as in the Caltech-101 article."""

    degrees: float = not_negative()
    color_jitter: float = fraction(zero=True)


@dataclass(kw_only=True)
class RandAugment(RandomResizedCrop):
    """Random crop, flip and RandAugment."""

    num_ops: int = at_least(1)
    magnitude: int = within(lambda value: 0 <= value <= 30, "a whole number from 0 to 30")


@dataclass(kw_only=True)
class Finetune:
    """The fine-tuning strategy: when parts are unfrozen, and with which learning rates."""

    name: Literal["none", "full", "head_then_full", "gradual", "layer_decay", "bn_frozen", "auto"] = "none"
    head_epochs: int | str = or_auto(at_least(0, default=0))
    unfrozen_by: float = within(lambda value: 0 <= value <= 1, "a number from 0 to 1", default=0.0)
    backbone_lr: float = positive(default=1.0)
    layer_decay: float = within(lambda value: 0 < value <= 1, "a number above 0 and at most 1", default=1.0)
    batchnorm: Literal["train", "frozen"] = "train"

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `Finetuning`, but for `head_epochs`, which may be auto."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults; with auto, those that the user overrode."""
        return {name: value for name, value in self.settings().items() if value != getattr(Finetune(), name)}


@dataclass(kw_only=True)
class Features:
    """The key of every choice of features; `off` runs a frozen backbone in every epoch."""

    name: str


@dataclass(kw_only=True)
class CachedFeatures(Features):
    """Cached features: a frozen backbone runs once for each view of an image, and its outputs are cached."""

    engine: Literal["auto", "eager", "folded", "onnx"]
    views: int = at_least(1)
    max_gb: float = positive()


@dataclass(kw_only=True)
class Trainer:
    """Arguments of Lightning's Trainer, under its names."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: int | str
    num_nodes: int = at_least(1)
    strategy: str
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]
    max_epochs: int | None = at_least(1)
    gradient_clip_val: float | None = positive()
    accumulate_grad_batches: int = at_least(1)
    deterministic: bool
    fast_dev_run: bool
    limit_train_batches: int | float = batches()
    limit_val_batches: int | float = batches()
    limit_test_batches: int | float = batches()
    detect_anomaly: bool
    enable_progress_bar: bool


@dataclass(kw_only=True)
class EarlyStopping:
    """Stop when the monitored metric has not improved for `patience` epochs."""

    patience: int = at_least(1)
    min_delta: float = not_negative()


@dataclass(kw_only=True)
class Callbacks:
    """Lightning callbacks; null or false leaves one out."""

    early_stopping: EarlyStopping | None
    checkpoint: bool
    learning_rate: bool
    ema: float | None = fraction(zero=False)


@dataclass(kw_only=True)
class Logger:
    """The loggers that record scalars."""

    tensorboard: bool = False
    csv: bool = False


@dataclass(kw_only=True)
class Sweep:
    """How a sweep runs its jobs; a run's config.yaml omits this group, hence the defaults."""

    name: str | None = None
    parallel: int = at_least(1, default=1)
    allow_failures: bool = False
    sample: int | None = at_least(1, default=None)
    trials: int = at_least(1, default=20)
    storage: str | None = None


@dataclass(kw_only=True)
class Advise:
    """What `headstart advise` compares, and how long; a run's config.yaml omits this group, hence the defaults."""

    minutes: float = positive(default=5.0)
    prior: Literal["imagenet", "off"] = "imagenet"
    fetch: bool = False
    models: list[str] = field(default_factory=list, metadata={"expected": "a list of names"})


USUAL_MONITOR = "val/accuracy"  # the default of `monitor`, which does not apply without a val split


@dataclass(kw_only=True)
class Config:
    """The complete config of a run, checked and typed."""

    freeze: bool | str = field(metadata={"expected": "true, false or the name of the last block to freeze"})
    epochs: int | None = at_least(1)
    batch_size: int | str | None = or_auto(at_least(1))
    lr: int | float | str | None = or_auto(positive())
    seed: int = within(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
    monitor: str = within(
        lambda value: re.fullmatch(r"(train|val)/[a-z0-9_]+", value) is not None,
        "a metric of train or val, such as val/accuracy or val/loss",
    )
    folds: int | None = at_least(2, default=None)  # config.yaml of an older run has none
    ckpt_path: str | None
    compile: bool
    report: bool | str = within(lambda value: value in (True, False, "auto"), "auto, true or false")
    check: Literal["warn", "stop", "off"] = "warn"  # config.yaml of an older run has none
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
    advise: Advise = field(default_factory=Advise, compare=False)  # of another command: runs do not differ in it

    @property
    def max_epochs(self) -> int:
        """Return the maximum number of epochs; for a head that is fitted to its optimum, of passes over its rows."""
        if isinstance(self.optimizer, LBFGS):
            return self.optimizer.max_iter
        assert self.trainer.max_epochs is not None
        return self.trainer.max_epochs

    @property
    def cross_validates(self) -> bool:
        """Tell whether this is a cross-validation, and not an ordinary run or that of one fold."""
        return self.folds is not None and self.data.fold is None

    @property
    def objective(self) -> str:
        """Return the metric by which a sweep compares its jobs; of cross-validations, the mean over the folds."""
        return f"folds/mean/{self.monitor.partition('/')[2]}" if self.cross_validates else self.monitor
