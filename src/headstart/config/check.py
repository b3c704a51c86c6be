"""Validation of the config that Hydra composed, with one error message for a wrong key or value.

It runs before torch is imported, so that a wrong name or value costs a second and not an hour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from headstart.config import data_schema, optimizer_schema, schema
from headstart.config.contradictions import contradictions
from headstart.config.keys import RENAMED, renamed_message
from headstart.config.optimizer_choice import fits_head
from headstart.config.optimizer_schema import USUAL_EPOCHS, USUAL_LR
from headstart.config.presets import optimizer_preset
from headstart.config.ranges import AUTO
from headstart.config.schema import Config
from headstart.utils.errors import ConfigError, suggestion

# The config groups whose schema depends on a choice: the key of the choice, and the schema of each option.
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
    "optimizer": (
        "name",
        {
            "adam": optimizer_schema.Gradient,
            "adamw": optimizer_schema.Gradient,
            "sgd": optimizer_schema.SGD,
            "lbfgs": optimizer_schema.LBFGS,
            "auto": optimizer_schema.Auto,
        },
    ),
    "scheduler": (
        "name",
        {
            "none": optimizer_schema.Scheduler,
            "plateau": optimizer_schema.Plateau,
            "step": optimizer_schema.Step,
            "cosine": optimizer_schema.Cosine,
            "onecycle": optimizer_schema.OneCycle,
        },
    ),
    "features": ("name", {"auto": schema.CachedFeatures, "off": schema.Features}),
}

# The group keys that top-level keys set by interpolations in `conf/`.
TOP_LEVEL_KEYS = {
    "batch_size": ("data", "batch_size"),
    "folds": ("data", "folds"),
    "lr": ("optimizer", "lr"),
    "epochs": ("trainer", "max_epochs"),
}


def check(cfg: DictConfig) -> Config:
    """Validate a composed config and convert it to a `Config`.

    Args:
        cfg: the config that Hydra composed from `conf/`, the experiment and the overrides.

    Returns:
        The same values, typed, with interpolations resolved.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type or is out of range, or two values
            contradict each other. The message names the key and what was expected, and suggests the nearest name.
    """
    if cfg.get("optimizer", {}).get("name") == AUTO:
        fitted = _typed(_with_optimizer(cfg, "lbfgs"))
        config = fitted if fits_head(fitted) else _typed(_with_optimizer(cfg, "adam"))
    else:
        config = _typed(cfg)
    for problem in (*_out_of_range(config), *contradictions(config)):
        raise ConfigError(problem)
    return config


def _with_optimizer(cfg: DictConfig, name: str) -> DictConfig:
    """Return the config with an optimizer in the place of auto; the settings that are given stay."""
    values: Any = OmegaConf.to_container(cfg)
    given = {key: value for key, value in values["optimizer"].items() if key != "name" and value is not None}
    chosen: DictConfig = OmegaConf.create({**values, "optimizer": {**optimizer_preset(name), **given}})
    return chosen


def _typed(cfg: DictConfig) -> Config:
    """Convert a config to a `Config`, whose values may still be out of range."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(cfg), _completed(cfg)))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    assert isinstance(config, Config)
    return config


def check_sweep(cfg: DictConfig) -> None:
    """Validate the `sweep` group, which is needed before the jobs of a sweep are composed.

    Raises:
        ConfigError: see `check`.
    """
    try:
        sweep = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Sweep), cfg.sweep))
    except OmegaConfBaseException as error:
        raise ConfigError(f"sweep.{_explain(error)}") from None
    for problem in _out_of_range(sweep, "sweep."):
        raise ConfigError(problem)


def to_yaml(config: Config) -> str:
    """Return the config as YAML for `--config-path`, without the groups `sweep` and `advise`.

    Where `batch_size`, `lr` or `epochs` sets a key of a group, the key is written as an interpolation. Overriding the
    top-level key therefore still changes the group.
    """
    cfg: DictConfig = OmegaConf.structured(config)
    for key, (group, name) in TOP_LEVEL_KEYS.items():
        if name in cfg[group] and cfg[group][name] == cfg[key]:
            OmegaConf.update(cfg, f"{group}.{name}", f"${{{key}}}")
    values: Any = OmegaConf.to_container(cfg)
    del values["sweep"]  # belongs to the command; the URL of its database may contain a password
    del values["advise"]  # belongs to another command
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _schema(cfg: DictConfig) -> DictConfig:
    """Return the structured config for the chosen data source, head, optimizer and so on."""
    choices = []
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
        choices.append(variants[choice])
    return _schema_of(*choices)


@cache
def _schema_of(*choices: type) -> DictConfig:
    """Return the structured config with these schemas of the groups in `VARIANTS`; it is shared, and only merged."""
    structured: DictConfig = OmegaConf.structured(Config)
    for group, choice in zip(VARIANTS, choices, strict=True):
        structured[group] = choice
    return structured


def _completed(cfg: DictConfig) -> DictConfig:
    """Return the config with `freeze`, `lr` and `epochs` set where they are null, and labels of classes as strings.

    A head that is fitted to its optimum has neither learning rate nor epochs.
    """
    values: Any = OmegaConf.to_container(cfg)
    if values["optimizer"]["name"] != "lbfgs":
        usual = {"lr": USUAL_LR, "epochs": USUAL_EPOCHS}
        values |= {name: value for name, value in usual.items() if values.get(name, value) is None}
    if values.get("freeze", True) is None:
        values["freeze"] = values["finetune"]["name"] == "none"
    if isinstance(values["data"].get("classes"), dict):  # YAML parses the labels of {0: cat, 1: dog} as numbers
        values["data"]["classes"] = {str(label): name for label, name in values["data"]["classes"].items()}
    completed: DictConfig = OmegaConf.create(values)
    return completed


def _explain(error: OmegaConfBaseException) -> str:
    """Describe an error of OmegaConf in one or two sentences for the user."""
    key = error.full_key or str(error.key)
    parent, _, name = key.rpartition(".")
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set: give it on the command line, {key}=VALUE."
    if isinstance(error, InterpolationKeyError):
        return f"{key}: {error.msg}."
    if key in RENAMED:
        return renamed_message(key)
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
    """Describe the values that a field accepts: its range if it has one, and otherwise its type."""
    fields = dataclasses.fields(error.object_type) if dataclasses.is_dataclass(error.object_type) else ()
    field = next((field for field in fields if field.name == str(error.key)), None)
    return str(field.metadata.get("expected", field.type)) if field else "another type"


def _out_of_range(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield a message for each value of a schema, and of nested ones, that has the right type and is out of range."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{f.name}.")
        elif value is not None and "test" in f.metadata and not f.metadata["test"](value):
            yield f"{prefix}{f.name}={value}: expected {f.metadata['expected']}."
