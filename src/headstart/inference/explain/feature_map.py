"""Where a network still knows which part of an image is where: the last map that it makes of one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.utils.errors import ModelError

if TYPE_CHECKING:
    from headstart.inference.model import Model

MOST_PREFIX = 2  # tokens in front of those of the patches, if the network does not tell: class and distillation (DeiT)


@dataclass(frozen=True)
class Place:
    """A layer whose output is a map of the image.

    Attributes:
        module: the layer.
        prefix: how many tokens stand in front of those of the patches, if its output is tokens; None takes what is
            left over of a square.
    """

    module: nn.Module
    prefix: int | None

    def read(self, values: Tensor) -> Tensor:
        """The layer's output, or the gradient of it, as a copy of shape (batch, channels, side, side)."""
        found = _as_map(values, self.prefix)
        if found is None:
            raise ValueError(f"{type(self.module).__name__} gave a tensor of shape {tuple(values.shape)}: no map")
        return found.clone()


def find_place(model: Model) -> Place:
    """Finds the last map that a network makes of an image, by watching it at work.

    That is the output of the last layer which is a map and which the logits depend on. In a vision transformer whose
    head reads the class token, that is not the last block's: it is what goes into its attention.

    Raises:
        ModelError: the network makes no map.
    """
    network, side = model.network, model.preprocessing.crop
    backbone = network.get_submodule("backbone")
    prefix: int | None = getattr(backbone, "num_prefix_tokens", None)  # timm's transformers tell
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        image = image.to(model.device).requires_grad_()
        maps, logits = _watch(network, backbone, image, prefix)
        answer = logits.square().sum()
        for module, output in reversed(maps):
            # Those of another form are a layer's inner affairs, such as queries and keys.
            if output.shape == maps[-1][1].shape and _reaches(answer, output, prefix):
                return Place(module, prefix)
    raise ModelError(
        f"{model.path}: what {model.description['model']['name']} sees in images of {side} × {side} pixels cannot be "
        f"shown: expected a layer that makes a map of the image, 2 × 2 or larger, or a token for each patch. Train it "
        f"with a larger data.image_size, or take another network, such as model=resnet34."
    )


def _watch(
    network: nn.Module, backbone: nn.Module, image: Tensor, prefix: int | None
) -> tuple[list[tuple[nn.Module, Tensor]], Tensor]:
    """The layers that make maps of an image, with these maps, in the order in which they are done; and the logits."""
    calls: Counter[nn.Module] = Counter()
    maps: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        before, after = _side(inputs[0], prefix) if inputs else 0, _side(output, prefix)
        # A pool has no parameters and only resizes a map: what it was made from tells more.
        pool = before not in (0, after) and next(module.parameters(), None) is None
        if after > 1 and not pool:
            maps.append((module, output))

    hooks = [module.register_forward_hook(note) for module in backbone.modules()]
    try:
        logits: Tensor = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # A layer that runs twice, such as the ReLU that a block shares, would make two maps.
    return [(module, output) for module, output in maps if calls[module] == 1], logits


def _reaches(answer: Tensor, output: Tensor, prefix: int | None) -> bool:
    """Whether an answer depends on what is in a map, and not only on a class token beside it."""
    (gradient,) = torch.autograd.grad(answer, output, retain_graph=True, allow_unused=True)
    found = None if gradient is None else _as_map(gradient, prefix)
    return found is not None and bool(found.any())


def _as_map(values: object, prefix: int | None) -> Tensor | None:
    """A layer's output as a map of shape (batch, channels, side, side), or None if it is no map of a square.

    Args:
        values: of shape (batch, channels, side, side), (batch, side, side, channels) or (batch, tokens, channels).
        prefix: see `Place`.
    """
    if not isinstance(values, Tensor):
        return None
    match values.shape:
        case (_, _, height, width) if height == width:
            return values
        case (_, height, width, _) if height == width:
            return values.movedim(-1, 1)
        case (batch, tokens, channels):
            further = tokens - math.isqrt(tokens) ** 2 if prefix is None else prefix
            side = math.isqrt(max(tokens - further, 0))
            if side**2 == tokens - further and (prefix is not None or further <= MOST_PREFIX):
                return values[:, further:].reshape(batch, side, side, channels).movedim(-1, 1)
    return None


def _side(values: object, prefix: int | None) -> int:
    """Height and width of the map that a layer gives for one image; 0 if it gives none."""
    found = _as_map(values, prefix)
    return found.shape[-1] if found is not None and len(found) == 1 else 0
