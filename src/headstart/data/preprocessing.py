"""Preprocessing: from an RGB image to what the network's weights expect, the same wherever a model answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
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


def normalisation(preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """The last part of the evaluation transform: from uint8 (..., 3, crop, crop) to float32 of the same shape."""
    steps: Callable[[Tensor], Tensor] = v2.Compose(to_normalised_tensor(preprocessing)[1:])
    return steps


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


class WholeImage(torch.nn.Module):
    """The whole image in its own proportions, with the size that it had: what random parts can be cut out of later.

    An image within the budget is kept as it is: parts of it are parts of the file.

    Args:
        pixels: the budget. An image of more is resized to as many, or a few less.
        interpolation: as of `Preprocessing`; images beyond the budget are made smaller with Lanczos' filter, unless
            this is "nearest".
    """

    SIZE_BYTES = 8  # width and height, as two little-endian 32-bit numbers

    def __init__(self, pixels: int, interpolation: str) -> None:
        super().__init__()
        self.pixels, self.interpolation = pixels, InterpolationMode(interpolation)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, the same for every image."""
        return 3 * self.pixels + self.SIZE_BYTES

    def kept_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image of this size is kept with: what the reader of a row, too, finds it by."""
        if width * height <= self.pixels:
            return width, height
        # √(budget · width / height) by √(budget · height / width), each rounded down, is never more than the budget.
        # Of a line so long that the shorter side comes to 0, the longer one may come to more than the budget.
        wide, high = isqrt(self.pixels * width // height), isqrt(self.pixels * height // width)
        return min(max(wide, 1), self.pixels), min(max(high, 1), self.pixels)

    def forward(self, image: Image.Image) -> Tensor:
        """From an RGB image to a row.

        Returns:
            uint8 of shape (row_bytes,): the pixels, in the order of (3, kept height, kept width); zeros up to the
            budget; and the size that the image had.
        """
        original = image.size
        width, height = self.kept_size(*original)
        if (width, height) != original:
            # Parts are resized once more: what bilinear takes of an image's detail, it would take twice.
            nearest = self.interpolation == InterpolationMode.NEAREST
            mode = InterpolationMode.NEAREST if nearest else InterpolationMode.LANCZOS
            image = v2.functional.resize(image, [height, width], mode, antialias=True)
        pixels = v2.functional.pil_to_tensor(image).flatten()
        size = b"".join(length.to_bytes(4, "little") for length in original)
        row = torch.zeros(self.row_bytes, dtype=torch.uint8)
        row[: len(pixels)] = pixels
        row[-self.SIZE_BYTES :] = torch.frombuffer(bytearray(size), dtype=torch.uint8)
        return row
