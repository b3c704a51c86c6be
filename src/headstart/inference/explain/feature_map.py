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
class TargetLayer:
    """A layer whose output is a spatial feature map; grad-cam calls it the target layer.

    Attributes:
        module: the layer.
        prefix: number of prefix tokens before the patch tokens, if the output is tokens. None takes the number of
            tokens that exceed the largest square.
    """

    module: nn.Module
    prefix: int | None

    def reshape(self, values: Tensor) -> Tensor:
        """Return a copy of the layer's output, or of its gradient, in the shape (batch, channels, side, side).

        Raises:
            ValueError: it is not a square feature map.
        """
        feature_map = _as_feature_map(values, self.prefix)
        if feature_map is None:
            raise ValueError(f"{type(self.module).__name__} gave a tensor of shape {tuple(values.shape)}: no map")
        return feature_map.clone()


def find_target_layer(model: Model) -> TargetLayer:
    """Find the last layer whose output is a feature map that the logits depend on, by a forward pass with hooks.

    In a vision transformer whose head reads the class token, the last block's output does not qualify: the input of its
    attention does.

    Raises:
        ModelError: the network has no feature map of at least 2 × 2.
    """
    network, side = model.network, model.preprocessing.crop
    backbone = network.get_submodule("backbone")
    prefix: int | None = getattr(backbone, "num_prefix_tokens", None)  # an attribute of timm's transformers
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        image = image.to(model.device).requires_grad_()
        outputs, logits = _record_feature_maps(network, backbone, image, prefix)
        score = logits.square().sum()
        for module, output in reversed(outputs):
            # Outputs of other shapes are internal to a layer, such as queries and keys.
            if output.shape == outputs[-1][1].shape and _depends_on(score, output, prefix):
                return TargetLayer(module, prefix)
    raise ModelError(
        f"{model.path}: there are no heat maps of {model.description['model']['name']} for images of {side} × {side} "
        f"pixels: expected a layer with a feature map of 2 × 2 or more, or with a token for each patch. Train it with "
        f"a larger data.image_size, or take another network, such as model=resnet34."
    )


def _record_feature_maps(
    network: nn.Module, backbone: nn.Module, image: Tensor, prefix: int | None
) -> tuple[list[tuple[nn.Module, Tensor]], Tensor]:
    """Return the layers that output feature maps, with these, in the order of execution; and the logits."""
    calls: Counter[nn.Module] = Counter()
    outputs: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        before, after = _side(inputs[0], prefix) if inputs else 0, _side(output, prefix)
        # Pooling has no parameters and only resizes a map: its input is more informative.
        pool = before not in (0, after) and next(module.parameters(), None) is None
        if after > 1 and not pool:
            outputs.append((module, output))

    hooks = [module.register_forward_hook(record) for module in backbone.modules()]
    try:
        logits: Tensor = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # A layer that runs twice, such as a ReLU that a block reuses, has no single output.
    return [(module, output) for module, output in outputs if calls[module] == 1], logits


def _depends_on(score: Tensor, output: Tensor, prefix: int | None) -> bool:
    """Return whether a score depends on a feature map, and not only on a class token beside it."""
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    feature_map = _as_feature_map(gradient, prefix)
    return feature_map is not None and bool(feature_map.any())


def _as_feature_map(values: object, prefix: int | None) -> Tensor | None:
    """Reshape a layer's output to (batch, channels, side, side), or return None if it is not a square feature map.

    Its shape is (batch, channels, side, side), (batch, side, side, channels) or (batch, tokens, channels).
    """
    if not isinstance(values, Tensor):
        return None
    match values.shape:
        case (_, _, height, width) if height == width:
            return values
        case (_, height, width, _) if height == width:
            return values.movedim(-1, 1)
        case (batch, tokens, channels):
            extra = tokens - math.isqrt(tokens) ** 2 if prefix is None else prefix
            side = math.isqrt(max(tokens - extra, 0))
            if side**2 == tokens - extra and (prefix is not None or extra <= MOST_PREFIX):
                return values[:, extra:].reshape(batch, side, side, channels).movedim(-1, 1)
    return None


def _side(values: object, prefix: int | None) -> int:
    """Return the side of the feature map that a layer outputs for one image; 0 if it outputs none."""
    feature_map = _as_feature_map(values, prefix)
    return feature_map.shape[-1] if feature_map is not None and len(feature_map) == 1 else 0
