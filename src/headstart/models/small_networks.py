"""Small convolutional networks: GlyphNet, the pretrained default, and SimpleCNN, the baseline of the articles."""

from __future__ import annotations

from torch import nn


class GlyphNet(nn.Sequential):
    """A convolutional backbone for 32 x 32 images: a stem, three blocks that halve height and width, a pool.

    It maps normalised images, float (batch, 3, 32, 32), to features, float (batch, num_features). The pool averages
    over each quarter of the image instead of the whole image. The features thereby still distinguish the upper half of
    a glyph from its lower half, which distinguishes a 6 from a 9.
    """

    num_features = 104 * 2 * 2

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 24)
        self.block1 = _block(24, 32)
        self.block2 = _block(32, 64)
        self.block3 = _block(64, 104)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Build two convolutions, the first of which halves height and width."""
    return nn.Sequential(_convolution(inputs, outputs, stride=2), _convolution(outputs, outputs))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Build a 3 x 3 convolution with batch normalisation, whose shift replaces the bias, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SimpleCNN(nn.Sequential):
    """The articles' baseline: a backbone of two convolutions for 224 x 224 images.

    It maps images, float (batch, 3, 224, 224), to features, float (batch, num_features).
    """

    num_features = 8 * 56 * 56

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(((3, 4), (4, 8)), start=1):
            layers = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
            self.add_module(f"block{number}", nn.Sequential(*layers))
        self.flatten = nn.Flatten()
