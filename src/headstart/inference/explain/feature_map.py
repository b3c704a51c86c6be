"""Search for a network's last spatial feature map, which heat maps are computed from."""

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

MOST_PREFIX = 2  # most prefix tokens if the network does not report them: class and distillation (DeiT)


@dataclass(frozen=True)
class Place:
    """A layer whose output is a spatial feature map.

    Attributes:
        module: the layer.
        prefix: number of prefix tokens before the patch tokens, if the output is tokens. None takes the number of
            tokens that exceed the largest square.
    """

    module: nn.Module
    prefix: int | None

    def read(self, values: Tensor) -> Tensor:
        """Return a copy of the layer's output, or of its gradient, in the shape (batch, channels, side, side).

        Raises:
            ValueError: it is not a square feature map.
        """
        found = _as_map(values, self.prefix)
        if found is None:
            raise ValueError(f"{type(self.module).__name__} gave a tensor of shape {tuple(values.shape)}: no map")
        return found.clone()


def find_place(model: Model) -> Place:
    """Find the last feature map of a network, by a forward pass with hooks.

    It is the output of the last layer whose output is a feature map that the logits depend on. In a vision transformer
    whose head reads the class token, the last block's output does not qualify: the input of its attention does.

    Raises:
        ModelError: the network has no feature map of at least 2 × 2.
    """
    network, side = model.network, model.preprocessing.crop
    backbone = network.get_submodule("backbone")
    prefix: int | None = getattr(backbone, "num_prefix_tokens", None)  # an attribute of timm's transformers
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        image = image.to(model.device).requires_grad_()
        maps, logits = _watch(network, backbone, image, prefix)
        answer = logits.square().sum()
        for module, output in reversed(maps):
            # Outputs of other shapes are internal to a layer, such as queries and keys.
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
    """Run a network and record the layers that output feature maps.

    Returns:
        The layers with their feature maps, in the order of execution; and the logits.
    """
    calls: Counter[nn.Module] = Counter()
    maps: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        before, after = _side(inputs[0], prefix) if inputs else 0, _side(output, prefix)
        # Pooling has no parameters and only resizes a map: its input is more informative.
        pool = before not in (0, after) and next(module.parameters(), None) is None
        if after > 1 and not pool:
            maps.append((module, output))

    hooks = [module.register_forward_hook(note) for module in backbone.modules()]
    try:
        logits: Tensor = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # A layer that runs twice, such as a ReLU that a block reuses, has no single output.
    return [(module, output) for module, output in maps if calls[module] == 1], logits


def _reaches(answer: Tensor, output: Tensor, prefix: int | None) -> bool:
    """Tell whether the logits depend on a feature map, and not only on a class token beside it."""
    (gradient,) = torch.autograd.grad(answer, output, retain_graph=True, allow_unused=True)
    found = None if gradient is None else _as_map(gradient, prefix)
    return found is not None and bool(found.any())


def _as_map(values: object, prefix: int | None) -> Tensor | None:
    """Reshape a layer's output to (batch, channels, side, side), or return None if it is not a square feature map.

    Args:
        values: tensor of shape (batch, channels, side, side), (batch, side, side, channels) or (batch, tokens,
            channels).
        prefix: number of prefix tokens; see `Place`.
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
    """Return the side of the feature map that a layer outputs for one image; 0 if it outputs none."""
    found = _as_map(values, prefix)
    return found.shape[-1] if found is not None and len(found) == 1 else 0
