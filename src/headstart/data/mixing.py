"""MixUp and CutMix: training on pairs of images with the labels of both."""

from __future__ import annotations

from torch import nn
from torchvision.transforms import v2


def build_mixing(num_classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
    """What mixes the images of a training batch.

    Args:
        num_classes: of the labels.
        mixup: both parameters of the Beta distribution of a blended pair's shares (Zhang et al., arXiv:1710.09412); 0
            leaves it out.
        cutmix: likewise of the part's area (Yun et al., arXiv:1905.04899). Where there are both, each batch takes one.

    Returns:
        From float images (batch, channels, height, width) and int64 labels (batch,) to images of that shape and float
        targets (batch, num_classes), random by torch's generator; None where there is neither.
    """
    asked = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    ways = [way(alpha=alpha, num_classes=num_classes) for way, alpha in asked if alpha > 0]
    return v2.RandomChoice(ways) if ways else None
