"""Preprocessing: from an RGB image to what the network's weights expect, the same wherever a model answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from headstart.utils.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What weights expect of an image.

    Attributes:
        resize: the shorter side is resized to this, in pixels.
        crop: side of the square that is cut out of the middle, in pixels.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        mean: of the red, green and blue channels, of pixels in [0, 1].
        std: likewise.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """From what `dataclasses.asdict` gives, in which JSON has made lists of the tuples."""
        return cls(**{**values, "mean": _three(values["mean"]), "std": _three(values["std"])})

    def changed(
        self,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> Preprocessing:
        """The same, with what is not None put in its place; `image_size` keeps the ratio of resize to crop.

        Raises:
            ConfigError: the square to cut out would be larger than the resized image.
        """
        crop = image_size or self.crop
        if resize is not None and resize < crop:
            raise ConfigError(
                f"data.resize={resize} is smaller than the square of {crop} that the network sees: give "
                f"data.image_size={resize} as well, or a larger data.resize."
            )
        return replace(
            self,
            crop=crop,
            resize=resize or round(self.resize * crop / self.crop),
            interpolation=interpolation or self.interpolation,
            mean=_three(mean) if mean else self.mean,
            std=_three(std) if std else self.std,
        )


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Resize, cut out the middle, scale and normalise: the same as torchvision's `weights.transforms()`.

    Returns:
        A function from an RGB image to a float32 tensor of shape (3, crop, crop).
    """
    return compose(*resize_and_crop(preprocessing), *to_normalised_tensor(preprocessing))


def pixel_transform(preprocessing: Preprocessing) -> Transform:
    """The first part of the evaluation transform: from an RGB image to uint8 pixels of shape (3, crop, crop)."""
    return compose(*resize_and_crop(preprocessing), v2.PILToTensor())


class Normalisation(torch.nn.Module):
    """Runs the last part of the evaluation transform, on any device and to the same bits.

    Args:
        preprocessing: with whose mean and deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scales and normalises uint8 pixels (..., 3, height, width) to float32 of the same shape."""
        # Contiguous: where a pixel's three channels lie side by side, as in Pillow's images, this takes twice as long.
        return pixels.contiguous().float().mul_(1.0 / 255).sub_(self.mean.float()).div_(self.std.float())


def pixels_of(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """What the network sees as a picture: the normalisation is undone.

    Args:
        image: float32, of shape (3, height, width).
        preprocessing: with whose mean and deviation it was normalised.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    picture: Image.Image = v2.functional.to_pil_image((image.float() * std + mean).clamp(0, 1))
    return picture


def several_views(preprocessing: Preprocessing, name: str) -> Transform:
    """The evaluation transform with several fixed views of an image, to average the answers of.

    Args:
        preprocessing: what the weights expect.
        name: "flip" for the image and its mirror image; "five" for the middle and the four corners of the resized
            image (Krizhevsky et al., 2012, section 4.1).

    Returns:
        A function from an RGB image to a float32 tensor of shape (views, 3, crop, crop).
    """
    resize, middle = resize_and_crop(preprocessing)
    match name:
        case "flip":
            views: list[torch.nn.Module] = [resize, middle, _MirrorToo()]
        case "five":
            views = [resize, v2.FiveCrop(preprocessing.crop)]
        case _:
            raise ConfigError(f"tta={name}: expected flip or five.")
    return compose(*views, _ToTensors(to_normalised_tensor(preprocessing)))


class _MirrorToo(torch.nn.Module):
    def forward(self, image: Image.Image) -> tuple[Image.Image, Image.Image]:
        return image, v2.functional.horizontal_flip(image)


class _ToTensors(torch.nn.Module):
    def __init__(self, steps: list[torch.nn.Module]) -> None:
        super().__init__()
        self.steps = v2.Compose(steps)

    def forward(self, views: tuple[Image.Image, ...]) -> Tensor:
        # One by one: of several plain tensors, v2's transforms would take the first one only.
        return torch.stack([self.steps(view) for view in views])


def compose(*steps: torch.nn.Module) -> Transform:
    """Chains the steps of a transform."""
    transform: Transform = v2.Compose(list(steps))
    return transform


def resize_and_crop(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    """Returns the steps that give an image its size."""
    return [
        v2.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation), antialias=True),
        v2.CenterCrop(preprocessing.crop),
    ]


def to_normalised_tensor(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    """Returns the steps from an image to a normalised float32 tensor."""
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]


def fixed_steps(transform: Transform) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """Splits a transform that `compose` gave: steps that give an image its size, always the same, and the others."""
    steps = _steps(transform)
    fixed = list(takewhile(lambda step: isinstance(step, v2.Resize | v2.CenterCrop), steps))
    return fixed, steps[len(fixed) :]


def without_normalisation(transform: Transform) -> Transform:
    """Returns the transform up to uint8 pixels, or all of it where it does not end with the normalisation."""
    steps = _steps(transform)
    normalises = [type(step) for step in steps[-2:]] == [v2.ToDtype, v2.Normalize]
    return compose(*steps[:-2]) if normalises else transform


def _steps(transform: Transform) -> list[torch.nn.Module]:
    return list(transform.transforms) if isinstance(transform, v2.Compose) else []


class PixelRow(torch.nn.Module):
    """Packs an image into a row of bytes, whose length is the same for every image.

    Args:
        pixels: the budget. An image within it is packed as it is; a larger one is resized to as many, or a few less.
        nearest: how larger images are resized: to the nearest pixels, or with Lanczos' filter.
    """

    SIZE_BYTES = 8  # width and height, as two little-endian 32-bit numbers

    def __init__(self, pixels: int, *, nearest: bool = False) -> None:
        super().__init__()
        self.pixels, self.nearest = pixels, nearest

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 3 * self.pixels + self.SIZE_BYTES

    def kept_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height with which an image of this size is packed."""
        if width * height <= self.pixels:
            return width, height
        # √(budget · width / height) by √(budget · height / width), each rounded down, is never more than the budget.
        # Of a line so long that the shorter side comes to 0, the longer one may come to more than the budget.
        wide, high = isqrt(self.pixels * width // height), isqrt(self.pixels * height // width)
        return min(max(wide, 1), self.pixels), min(max(high, 1), self.pixels)

    def forward(self, image: Image.Image) -> Tensor:
        """Packs an RGB image.

        Returns:
            uint8 of shape (row_bytes,): pixels line by line, zeros up to the budget, and the size that the image had.
        """
        lengths = b"".join(length.to_bytes(4, "little") for length in image.size)
        size = self.kept_size(*image.size)
        if size != image.size:
            # Parts are resized once more: what bilinear takes of an image's detail, it would take twice.
            image = image.resize(size, Image.Resampling.NEAREST if self.nearest else Image.Resampling.LANCZOS)
        pixels = image.tobytes()
        return torch.frombuffer(bytearray(pixels.ljust(3 * self.pixels, b"\0") + lengths), dtype=torch.uint8)

    def unpack(self, row: NDArray[np.uint8]) -> Image.Image:
        """Returns the image that was packed into a row; its `info["size"]` is the size that it had."""
        original = tuple(np.frombuffer(row[-self.SIZE_BYTES :].tobytes(), dtype="<u4").tolist())
        width, height = self.kept_size(*original)
        image = Image.frombuffer("RGB", (width, height), row[: 3 * width * height], "raw", "RGB", 0, 1)
        image.info["size"] = original
        return image


class PartOfPacked(torch.nn.Module):
    """Cuts out of an unpacked image the part that v2.RandomResizedCrop cuts out of the image before it was packed.

    Args:
        part: that transform.
    """

    def __init__(self, part: v2.RandomResizedCrop) -> None:
        super().__init__()
        self.part = part

    def forward(self, image: Image.Image) -> Image.Image:
        """Draws the part in the size that the image had, so that what is random is the same."""
        width, height = image.info["size"]
        if image.size == (width, height):
            whole: Image.Image = self.part(image)
            return whole
        drawn = self.part.make_params([torch.empty(1).expand(3, height, width)])
        across, down = image.width / width, image.height / height
        right, bottom = drawn["left"] + drawn["width"], drawn["top"] + drawn["height"]
        box = (drawn["left"] * across, drawn["top"] * down, right * across, bottom * down)
        high, wide = self.part.size
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))  # rounding may lead beyond
        return image.resize((wide, high), Image.Resampling[InterpolationMode(self.part.interpolation).name], box)
