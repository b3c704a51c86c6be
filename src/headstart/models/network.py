"""Network of a trained classifier, built from the description and weights of a model folder or checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from headstart.models.backbone import build_backbone
from headstart.models.head import build_head
from headstart.models.model_folder import Artifact
from headstart.utils.errors import ModelError


def build_parts(description: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Build the backbone and the head that a classifier's description names, with random weights.

    Raises:
        ModelError: if there is no such network.
    """
    backbone = build_backbone(**description["model"], weights=None)
    head = build_head(
        num_features=backbone.num_features, num_classes=len(description["class_names"]), **description["head"]
    )
    return backbone.module, head


def build_network(artifact: Artifact) -> nn.Sequential:
    """Build the network of a trained classifier, load its weights, and set it to evaluation mode without gradients.

    Returns:
        A sequence of the modules `backbone` and `head`.

    Raises:
        ModelError: if the weights do not match the network.
    """
    check_sizes(artifact)
    with Uninitialised():
        backbone, head = build_parts(artifact.description)
    network = nn.Sequential(OrderedDict(backbone=backbone, head=head))
    state: Any = OrderedDict(artifact.state)
    state._metadata = getattr(network.state_dict(), "_metadata", {})  # MNASNet reads its version from it
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise _mismatch(artifact, " ".join(str(error).split())[:300]) from None
    return network.eval().requires_grad_(False)


def check_sizes(artifact: Artifact) -> None:
    """Check that the shapes of the weights match the described network, before memory is allocated for it.

    Raises:
        ModelError: if the weights do not match the description, or there is no such network.
    """
    try:
        with torch.device("meta"):  # shapes without data
            parts = build_parts(artifact.description)
    except (NotImplementedError, RuntimeError):  # a network whose constructor needs data
        return
    expected = {
        f"{part}.{name}": tuple(value.shape)
        for part, module in zip(("backbone", "head"), parts, strict=True)
        for name, value in module.state_dict().items()
    }
    shapes = {name: tuple(value.shape) for name, value in artifact.state.items()}
    for name in (*expected, *shapes):
        if expected.get(name) != shapes.get(name):
            sizes = f"{_format_size(shapes, name)} in the file, {_format_size(expected, name)} by its description"
            raise _mismatch(artifact, f"{name}: {sizes}")


def _mismatch(artifact: Artifact, problem: str) -> ModelError:
    return ModelError(
        f"{artifact.path}: its weights are not those of {artifact.description['model']['name']} as this version "
        f"builds it ({problem}). Install the versions that it was trained with: "
        f"{artifact.description.get('versions') or 'they are not known'}."
    )


def _format_size(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return " × ".join(map(str, shapes[name])) or "one number" if name in shapes else "nothing"


class Uninitialised(TorchFunctionMode):
    """A context manager that skips weight initialisation, which would take longer than loading the weights."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
