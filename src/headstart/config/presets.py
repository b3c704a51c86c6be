"""Settings of a group's file in `conf/`, for choices that are made after Hydra has composed the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import headstart

CONF = Path(headstart.__file__).parents[2] / "conf"  # next to src/ in a checkout


def finetune_preset(name: str) -> dict[str, Any]:
    """Return the settings of `conf/finetune/NAME.yaml` as keyword arguments of `Finetuning`."""
    shared: Any = OmegaConf.load(CONF / "finetune" / "_base.yaml")
    own: Any = OmegaConf.load(CONF / "finetune" / f"{name}.yaml")
    values = {**shared, **own}
    del values["name"], values["defaults"]
    return values


def model_preset(name: str) -> dict[str, Any]:
    """Return `conf/model/NAME.yaml`, with the values of the file that it builds on."""
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        values |= {} if base == "_self_" else model_preset(base)
    return {**values, **own}


def optimizer_preset(name: str) -> dict[str, Any]:
    """Return `conf/optimizer/NAME.yaml`, with interpolations."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"))
    return dict(values)
