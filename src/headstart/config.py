"""The control panel's schema: every key, its type and its range, and the messages for what does not fit.

The values themselves stand in `conf/`, once. `check` turns what Hydra composed into a `Config`, before torch is
imported, so that a wrong name or value costs a second and not an hour.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from headstart.errors import ConfigError


def _within(test: Callable[[Any], bool], words: str) -> Any:
    """A field whose value, if it is not null, must pass `test`; `words` finish the sentence "expected ..."."""
    return field(metadata={"test": test, "words": words})


def _at_least(minimum: int) -> Any:
    return _within(lambda value: value >= minimum, f"a whole number of at least {minimum}")


def _positive() -> Any:
    return _within(lambda value: 0 < value < float("inf"), "a number above 0")


def _not_negative() -> Any:
    return _within(lambda value: 0 <= value < float("inf"), "a number of at least 0")


def _fraction(*, zero: bool) -> Any:
    """A share of something: below 1, and above 0 unless zero is meant to be possible."""
    if zero:
        return _within(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
    return _within(lambda value: 0 < value < 1, "a number between 0 and 1")


# --- data ----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Data:
    """What every data source takes."""

    source: str
    batch_size: int = _at_least(1)
    evaluation_batch_size: int | None = _at_least(1)
    num_workers: int | None = _at_least(0)
    split_seed: int = _at_least(0)
    val_fraction: float = _fraction(zero=False)
    test_fraction: float = _fraction(zero=True)
    train_per_class: int | None = _at_least(1)
    image_size: int | None = _at_least(1)
    resize: int | None = _at_least(1)
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None
    mean: list[float] | None = _within(lambda value: len(value) == 3, "three numbers, one a channel")
    std: list[float] | None = _within(
        lambda value: len(value) == 3 and min(value) > 0, "three numbers above 0, one a channel"
    )


@dataclass(kw_only=True)
class ImageFolder(Data):
    """Folders of images, one a class."""

    root: str


@dataclass(kw_only=True)
class Csv(Data):
    """A folder of images and a table of their labels."""

    root: str
    images: str
    train_csv: str
    test_csv: str | None
    image_column: str
    label_column: str
    classes: dict[str, str] | None


@dataclass(kw_only=True)
class Public(Data):
    """A public data set that can be downloaded."""

    root: str
    download: bool


@dataclass(kw_only=True)
class Glyphs(Data):
    """Letters and digits rendered from matplotlib's fonts."""

    per_class: int = _at_least(4)
    size: int = _at_least(8)
    seed: int = _at_least(0)


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

    hidden: int = _at_least(1)
    dropout: float = _fraction(zero=True)


@dataclass(kw_only=True)
class Loss:
    """Cross-entropy on logits."""

    label_smoothing: float = _fraction(zero=True)
    class_weights: Literal["balanced"] | None


# --- training ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Augment:
    """A random training transform without arguments."""

    name: str


@dataclass(kw_only=True)
class PadCrop(Augment):
    """Pad and crop back to size at a random place."""

    padding: int = _at_least(1)


@dataclass(kw_only=True)
class RandomResizedCrop(Augment):
    """Crop a random part; `scale` is the smallest share of the image's area."""

    scale: float = _within(lambda value: 0 < value <= 1, "a number above 0 and at most 1")


@dataclass(kw_only=True)
class Caltech(RandomResizedCrop):
    """Crop, rotation, colour, flip."""

    degrees: float = _not_negative()
    colour: float = _fraction(zero=True)


@dataclass(kw_only=True)
class RandAugment(RandomResizedCrop):
    """Crop, flip and RandAugment."""

    operations: int = _at_least(1)
    magnitude: int = _within(lambda value: 0 <= value <= 30, "a whole number from 0 to 30")


@dataclass(kw_only=True)
class Optimizer:
    """What every optimizer takes."""

    name: str
    lr: float = _positive()
    weight_decay: float = _not_negative()


@dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent."""

    momentum: float = _fraction(zero=True)
    nesterov: bool


@dataclass(kw_only=True)
class Scheduler:
    """No change of the learning rate."""

    name: str


@dataclass(kw_only=True)
class Plateau(Scheduler):
    """Lower the rate when the monitored value stops improving."""

    factor: float = _fraction(zero=False)
    patience: int = _at_least(0)


@dataclass(kw_only=True)
class Step(Scheduler):
    """Lower the rate every few epochs."""

    every: int = _at_least(1)
    factor: float = _fraction(zero=False)


@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Warm up linearly, then fall along a cosine."""

    warmup_epochs: float = _not_negative()


@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Rise to the rate and fall far below it, once."""

    rise: float = _fraction(zero=False)


@dataclass(kw_only=True)
class Trainer:
    """Arguments of Lightning's Trainer, by its own names."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: int | str
    num_nodes: int = _at_least(1)
    strategy: str
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"]
    max_epochs: int = _at_least(1)
    gradient_clip_val: float | None = _positive()
    accumulate_grad_batches: int = _at_least(1)
    deterministic: bool
    fast_dev_run: bool
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    log_every_n_steps: int = _at_least(1)
    num_sanity_val_steps: int = _at_least(0)
    detect_anomaly: bool
    enable_progress_bar: bool


@dataclass(kw_only=True)
class EarlyStopping:
    """Stop when the monitored value has not improved for `patience` epochs."""

    patience: int = _at_least(1)
    min_delta: float = _not_negative()


@dataclass(kw_only=True)
class Callbacks:
    """What watches the run; null leaves it out."""

    early_stopping: EarlyStopping | None
    checkpoint: bool
    learning_rate: bool


@dataclass(kw_only=True)
class Logger:
    """Where the scalars go."""

    tensorboard: bool = False
    csv: bool = False


@dataclass(kw_only=True)
class Config:
    """The whole control panel, checked and typed."""

    freeze: bool | str = field(metadata={"words": "true, false or the name of the last block to freeze"})
    epochs: int = _at_least(1)
    batch_size: int = _at_least(1)
    lr: float = _positive()
    seed: int = _within(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
    monitor: str = _within(
        lambda value: re.fullmatch(r"(train|val)/[a-z0-9_]+", value) is not None,
        "a metric of train or val, such as val/accuracy or val/loss",
    )
    ckpt_path: str | None
    data: Data
    model: Model
    head: Head
    loss: Loss
    augment: Augment
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    callbacks: Callbacks
    logger: Logger


# The groups whose keys depend on a choice: the key that names the choice, and the schema of each.
VARIANTS: dict[str, tuple[str, dict[str, type]]] = {
    "data": (
        "source",
        {
            "imagefolder": ImageFolder,
            "csv": Csv,
            "stl10": Public,
            "pets": Public,
            "caltech101": Public,
            "digits": Data,
            "glyphs": Glyphs,
        },
    ),
    "head": ("name", {"linear": Head, "mlp": MLP}),
    "augment": (
        "name",
        {
            "none": Augment,
            "flip": Augment,
            "pad_crop": PadCrop,
            "standard": RandomResizedCrop,
            "caltech": Caltech,
            "randaugment": RandAugment,
        },
    ),
    "optimizer": ("name", {"adam": Optimizer, "adamw": Optimizer, "sgd": SGD}),
    "scheduler": (
        "name",
        {"none": Scheduler, "plateau": Plateau, "step": Step, "cosine": Cosine, "onecycle": OneCycle},
    ),
}


def check(cfg: DictConfig) -> Config:
    """Turns a composed configuration into a `Config`.

    Args:
        cfg: what Hydra composed from `conf/`, the experiment and the command line.

    Returns:
        The same values, typed, with interpolations resolved.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is out of range. The message
            names the key, says what was expected and suggests the nearest name.
    """
    try:
        merged = OmegaConf.merge(_schema(cfg), cfg)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    assert isinstance(config, Config)
    for problem in _out_of_range(config):
        raise ConfigError(problem)
    return config


def _schema(cfg: DictConfig) -> DictConfig:
    """The schema of this choice of data, head, optimizer and so on."""
    schema: DictConfig = OmegaConf.structured(Config)
    for group, (key, variants) in VARIANTS.items():
        settings = cfg.get(group)
        if not isinstance(settings, DictConfig):
            raise ConfigError(f"{group}={settings}: choose one of {', '.join(variants)} by {group}=NAME.")
        choice = settings.get(key)
        if choice not in variants:
            raise ConfigError(
                f"{group}.{key}={choice}: there is no such {group}.{suggestion(str(choice), variants)} "
                f"There are {', '.join(variants)}."
            )
        schema[group] = OmegaConf.structured(variants[choice])
    return schema


def suggestion(name: str, known: Any) -> str:
    """Asks whether the nearest of the known names was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def _explain(error: OmegaConfBaseException) -> str:
    """One sentence for what OmegaConf found."""
    key = error.full_key or str(error.key)
    parent, _, name = key.rpartition(".")
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set: give it on the command line, {key}=VALUE."
    if isinstance(error, InterpolationKeyError):
        return f"{key}: {error.msg}."
    if isinstance(error, ConfigKeyError):
        known = [f.name for f in dataclasses.fields(error.object_type)] if error.object_type else []
        where = f" in '{parent}'" if parent else ""
        return (
            f"unknown key '{name}'{where}.{suggestion(name, known)} "
            f"{'Keys there' if parent else 'The keys'} are {', '.join(known)}."
        )
    if isinstance(error, ValidationError):
        problem = str(error.msg).splitlines()[0].rstrip(".")
        return f"{key}: {problem}." if "expected" in problem else f"{key}: {problem}; expected {_expected(error)}."
    return str(error).splitlines()[0]


def _expected(error: OmegaConfBaseException) -> str:
    """The words for what a field takes: its range where it has one, else its type."""
    fields = dataclasses.fields(error.object_type) if dataclasses.is_dataclass(error.object_type) else ()
    for f in fields:
        if f.name == str(error.key):
            return str(f.metadata.get("words", f.type))
    return "another type"


def _out_of_range(settings: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for every value that has the right type and cannot be meant."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{f.name}.")
        elif value is not None and "test" in f.metadata and not f.metadata["test"](value):
            yield f"{prefix}{f.name}={value}: expected {f.metadata['words']}."
