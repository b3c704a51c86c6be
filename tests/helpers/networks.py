"""Tiny networks of each family, for proofs of structure: `model=timm model.name=tiny_vit`, where this is imported.

Each has what its family has (blocks in stages, BatchNorm or LayerNorm, depthwise convolutions, dropout, a classifier of
several layers) and computes an image of 32 × 32 pixels in a millisecond.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

TINY = ("tiny_resnet", "tiny_vgg", "tiny_mobilenet", "tiny_vit")
ABOUT = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"}


class Chain(nn.Module):
    """Layers, pooling and a classifier, as timm has them."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, num_classes: int = 1000) -> None:
        super().__init__()
        self.features, self.pool, self.hidden = features, nn.AdaptiveAvgPool2d(2), classifier
        self.num_features = int(next(m for m in reversed(classifier) if isinstance(m, nn.Linear)).out_features)
        self.classifier: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, or features without a classifier."""
        logits: Tensor = self.classifier(self.hidden(self.pool(self.features(images)).flatten(1)))
        return logits


class Vgg(Chain):
    """Convolutions in a row and a hidden layer with dropout."""

    def __init__(self, num_classes: int = 1000) -> None:
        layers = [layer for inputs, outputs in ((3, 8), (8, 16)) for layer in self.block(inputs, outputs)]
        hidden = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5))
        super().__init__(nn.Sequential(*layers), hidden, num_classes)

    @staticmethod
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        """A convolution with BatchNorm, and pooling."""
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


class Inverted(nn.Module):
    """MobileNetV2's block: wide inside, depthwise, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """As many channels as there were."""
        return images + self.layers(images)


class MobileNet(Chain):
    """A stem and two inverted residual blocks."""

    def __init__(self, num_classes: int = 1000) -> None:
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        hidden = nn.Sequential(nn.Linear(32, 32), nn.ReLU6())
        super().__init__(nn.Sequential(stem, Inverted(8), Inverted(8)), hidden, num_classes)


def described(network: nn.Module, classifier: str) -> nn.Module:
    """The network with what timm says about its own."""
    network.pretrained_cfg = ABOUT | {"classifier": classifier}  # type: ignore[assignment]
    return network


@register_model
def tiny_vgg(num_classes: int = 1000, **_: Any) -> nn.Module:
    """Two convolutions with BatchNorm, a hidden layer with dropout."""
    return described(Vgg(num_classes), "classifier")


@register_model
def tiny_mobilenet(num_classes: int = 1000, **_: Any) -> nn.Module:
    """Two inverted residual blocks."""
    return described(MobileNet(num_classes), "classifier")


@register_model
def tiny_resnet(num_classes: int = 1000, **_: Any) -> nn.Module:
    """One residual block a stage."""
    shape = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}
    return described(ResNet(BasicBlock, num_classes=num_classes, **shape), "fc")


@register_model
def tiny_vit(num_classes: int = 1000, **_: Any) -> nn.Module:
    """Two layers of width 32."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return described(VisionTransformer(num_classes=num_classes, **shape), "head")
