"""Checks what Hydra composed, with one message for what does not fit.

`check` makes a `Config` of it before torch is imported, so that a wrong name or value costs a second and not an hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from headstart.config import data_schema, schema
from headstart.config.ranges import AUTO
from headstart.config.schema import Config
from headstart.utils.errors import ConfigError, suggestion

# The groups whose keys depend on a choice: the key that names the choice, and the schema of each.
VARIANTS: dict[str, tuple[str, dict[str, type]]] = {
    "data": (
        "source",
        {
            "imagefolder": data_schema.ImageFolder,
            "csv": data_schema.Csv,
            "stl10": data_schema.Public,
            "pets": data_schema.Public,
            "caltech101": data_schema.Public,
            "digits": data_schema.Data,
            "glyphs": data_schema.Glyphs,
        },
    ),
    "head": ("name", {"linear": schema.Head, "mlp": schema.MLP}),
    "augment": (
        "name",
        {
            "none": schema.Augment,
            "flip": schema.Augment,
            "pad_crop": schema.PadCrop,
            "standard": schema.RandomResizedCrop,
            "caltech": schema.Caltech,
            "randaugment": schema.RandAugment,
            "trivialaugment": schema.RandomResizedCrop,
        },
    ),
    "optimizer": ("name", {"adam": schema.Optimizer, "adamw": schema.Optimizer, "sgd": schema.SGD}),
    "scheduler": (
        "name",
        {
            "none": schema.Scheduler,
            "plateau": schema.Plateau,
            "step": schema.Step,
            "cosine": schema.Cosine,
            "onecycle": schema.OneCycle,
        },
    ),
    "features": ("name", {"auto": schema.CachedFeatures, "off": schema.Features}),
}

# Where the top-level keys go; in `conf/` the same stands as interpolations.
REACH_DOWN = {"batch_size": ("data", "batch_size"), "lr": ("optimizer", "lr"), "epochs": ("trainer", "max_epochs")}


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
        merged = OmegaConf.merge(_schema(cfg), _with_text_labels(cfg))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    assert isinstance(config, Config)
    for problem in _out_of_range(config):
        raise ConfigError(problem)
    for problem in _contradictions(config):
        raise ConfigError(problem)
    return config


def check_sweep(cfg: DictConfig) -> None:
    """Checks the `sweep` group, which a sweep needs before there are jobs.

    Raises:
        ConfigError: as `check`.
    """
    try:
        sweep = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Sweep), cfg.sweep))
    except OmegaConfBaseException as error:
        raise ConfigError(f"sweep.{_explain(error)}") from None
    for problem in _out_of_range(sweep, "sweep."):
        raise ConfigError(problem)


def to_yaml(config: Config) -> str:
    """The configuration as a file that composes to itself, and that the top-level keys still reach down in."""
    cfg: DictConfig = OmegaConf.structured(config)
    for key, (group, name) in REACH_DOWN.items():
        if cfg[group][name] == cfg[key]:
            OmegaConf.update(cfg, f"{group}.{name}", f"${{{key}}}")
    values: Any = OmegaConf.to_container(cfg)
    del values["sweep"]  # of the command; a database's address may hold a password
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _schema(cfg: DictConfig) -> DictConfig:
    """The schema of this choice of data, head, optimizer and so on."""
    whole: DictConfig = OmegaConf.structured(Config)
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
        whole[group] = OmegaConf.structured(variants[choice])
    return whole


def _with_text_labels(cfg: DictConfig) -> DictConfig:
    """Labels of a table are text, also those that YAML takes for numbers: {0: cat, 1: dog}."""
    values: Any = OmegaConf.to_container(cfg)
    if isinstance(values["data"].get("classes"), dict):
        values["data"]["classes"] = {str(label): name for label, name in values["data"]["classes"].items()}
    labelled: DictConfig = OmegaConf.create(values)
    return labelled


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


def _contradictions(config: Config) -> Iterator[str]:
    """A sentence for values that cannot both be meant."""
    finetune = config.finetune
    if config.freeze is True and (finetune.name != "none" or finetune.changed()):
        others = finetune.name if finetune.name != "none" else f"none and its {', '.join(finetune.changed())}"
        yield (
            f"freeze=true trains the head alone, and finetune={others} the backbone, too: leave one of them out, "
            f"or freeze up to a block, such as freeze=layer2."
        )
    if finetune.name == AUTO and config.freeze is not False:
        yield f"finetune=auto decides what is frozen: leave freeze={config.freeze} out, or name a strategy."
    if finetune.name == AUTO and config.model.weights is None:
        yield "finetune=auto looks at the images with pretrained weights: for model.weights=null, take finetune=full."
    if config.data.sampling == "balanced" and config.loss.class_weights == "balanced":
        yield (
            "data.sampling=balanced and loss.class_weights=balanced would weigh the smaller classes twice: leave one "
            "of them out."
        )
    if finetune.head_epochs >= config.epochs:
        yield (
            f"finetune.head_epochs={finetune.head_epochs}: the backbone never unfreezes in epochs={config.epochs}. "
            f"Give more epochs, or freeze=true to train the head alone."
        )


def _out_of_range(settings: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for every value that has the right type and cannot be meant."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{f.name}.")
        elif value is not None and "test" in f.metadata and not f.metadata["test"](value):
            yield f"{prefix}{f.name}={value}: expected {f.metadata['words']}."
