"""RandAugment and TrivialAugment on batches: which operation on which image, and how strong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.data import batch_operations as ops

STRONGEST = 30  # of the strengths of operations, counted from 0


class Space(NamedTuple):
    """The strengths of an operation: from the weakest to the strongest, of either sign or not, whole or not."""

    operation: ops.Operation
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False
    base: float = 0.0  # what the strength is added to
    whole: bool = False

    def at(self, level: Tensor, sign: Tensor) -> Tensor:
        """Strengths for levels in [0, 1] and signs that are -1 or 1, each of shape (batch,)."""
        values = self.weakest + (self.strongest - self.weakest) * level
        values = values.round() if self.whole else values
        return self.base + (values * sign if self.signed else values)


def augmentation_space(side: int, *, wide: bool) -> Mapping[str, Space]:
    """The operations of RandAugment and TrivialAugment by torchvision's names.

    Args:
        side: of the images, in pixels.
        wide: with the strengths of v2.TrivialAugmentWide, else those of v2.RandAugment.
    """
    shear, colour = (0.99, 0.99) if wide else (0.3, 0.9)
    shift, degrees, bits = (32, 135, 2) if wide else (150 / 331 * side, 30, 4)
    return {
        "Identity": Space(lambda images, _: images),
        "ShearX": Space(ops.shear_x, 0, shear, signed=True),
        "ShearY": Space(ops.shear_y, 0, shear, signed=True),
        "TranslateX": Space(ops.translate_x, 0, shift, signed=True),
        "TranslateY": Space(ops.translate_y, 0, shift, signed=True),
        "Rotate": Space(ops.rotate, 0, degrees, signed=True),
        "Brightness": Space(ops.brightness, 0, colour, signed=True, base=1),
        "Color": Space(ops.saturation, 0, colour, signed=True, base=1),
        "Contrast": Space(ops.contrast, 0, colour, signed=True, base=1),
        "Sharpness": Space(ops.sharpness, 0, colour, signed=True, base=1),
        "Posterize": Space(ops.posterize, 8, bits, whole=True),
        "Solarize": Space(ops.solarize, 1, 0),
        "AutoContrast": Space(ops.autocontrast),
        "Equalize": Space(ops.equalize),
    }


def rand_augment(images: Tensor, generator: torch.Generator, operations: int, magnitude: int) -> Tensor:
    """Some random operations on each image, all of one strength from 0 to 30 (Cubuk et al., arXiv:1909.13719)."""
    space = augmentation_space(images.shape[3], wide=False)
    level = torch.full((len(images),), magnitude / STRONGEST)
    for _ in range(operations):
        images = _one_of(space, images, level, generator)
    return images


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random operation on each image, of a random strength (Müller & Hutter, arXiv:2103.10158)."""
    level = torch.randint(STRONGEST + 1, (len(images),), generator=generator) / STRONGEST
    return _one_of(augmentation_space(images.shape[3], wide=True), images, level, generator)


def _one_of(space: Mapping[str, Space], images: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(space), (len(images),), generator=generator)
    sign = 1.0 - 2 * torch.randint(2, (len(images),), generator=generator)
    return ops.each(
        images, [(one.operation, chosen == number, one.at(level, sign)) for number, one in enumerate(space.values())]
    )
