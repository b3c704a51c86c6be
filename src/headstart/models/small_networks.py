"""Small convolutional networks: GlyphNet, the pretrained default, and SimpleCNN, the baseline of the articles."""

from __future__ import annotations

from torch import Tensor, nn


class GlyphNet(nn.Module):
    """A convolutional backbone for 32 x 32 images: a stem, three blocks that halve height and width, a pool.

    The pool averages over each quarter of the image instead of the whole image. The features thereby still distinguish
    the upper half of a glyph from its lower half, which distinguishes a 6 from a 9.

    Attributes:
        num_features: length of an image's feature vector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 24)
        self.block1 = _block(24, 32)
        self.block2 = _block(32, 64)
        self.block3 = _block(64, 104)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.num_features = 104 * 2 * 2

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images, float (batch, 3, 32, 32), to features, float (batch, num_features)."""
        x = self.stem(x)
        x = self.block1(x)
        x = self.block2(x)
        x = self.block3(x)
        features: Tensor = self.pool(x)
        return features


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


class SimpleCNN(nn.Module):
    """The articles' baseline: a backbone of two convolutions for 224 x 224 images.

    Attributes:
        num_features: length of an image's feature vector.
    """

    num_features = 8 * 56 * 56

    def __init__(self) -> None:
        super().__init__()
        self.block1 = self._block(3, 4)
        self.block2 = self._block(4, 8)
        self.flatten = nn.Flatten()

    @staticmethod
    def _block(channels: int, filters: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, filters, kernel_size=3, padding=1),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float (batch, 3, 224, 224), to features, float (batch, 25088)."""
        features: Tensor = self.flatten(self.block2(self.block1(images)))
        return features
