"""Names of backbones, as `advise.models` lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from headstart.config.compose import quote
from headstart.config.presets import CONF, model_preset
from headstart.config.schema import Model
from headstart.utils.errors import ModelError, suggestion

LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Choice:
    """A backbone and its weights.

    Attributes:
        model: the config group that builds it.
        overrides: those of train.py that select it.
    """

    model: Model
    overrides: tuple[str, ...]


def read_name(text: str) -> Choice:
    """Return what a name stands for: a file of conf/model, torchvision/NAME or timm/NAME, then @WEIGHTS or nothing.

    Raises:
        ModelError: there is no such file in conf/model; the message suggests a name.
    """
    name, separator, given = text.partition("@")
    library, slash, in_library = name.partition("/")
    if slash and library in LIBRARIES:
        preset: Any = {"library": library, "name": in_library, "weights": "default"}
        choice = Choice(Model(**preset), (f"model={library}", f"model.name={in_library}"))
    else:
        choice = Choice(Model(**_preset(name)), (f"model={name}",))
    if not separator:
        return choice
    value = given if re.fullmatch(r"[-+./@\w]+", given) else quote(given)
    model = replace(choice.model, weights=None if given == "null" else given)
    return Choice(model, (*choice.overrides, f"model.weights={value}"))


def _preset(name: str) -> dict[str, Any]:
    """Return the settings of conf/model/NAME.yaml."""
    known = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in LIBRARIES)
    if name in known:
        return model_preset(name)
    if name in LIBRARIES:
        raise ModelError(f"{name} has many networks: write {name}/NAME.")
    from torchvision import models  # slow to import

    if name in models.list_models(module=models):
        raise ModelError(f"there is no conf/model/{name}.yaml, but torchvision has it: write torchvision/{name}.")
    raise ModelError(
        f"there is no conf/model/{name}.yaml.{suggestion(name, known)} "
        f"Expected a file of conf/model, torchvision/NAME or timm/NAME."
    )
