"""Preprocessing of RGB images as pretrained weights expect it, the same in training, evaluation and inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
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

# Cached features and decoded images depend on this number instead of our source code. Raise it with every change of
# decoding, preprocessing, augmentation, the seeds of views, engines or our own networks that changes any value.
PIXELS_VERSION = 1


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that pretrained weights expect.

    Attributes:
        resize: length to which the shorter side is resized, in pixels.
        crop: side of the square center crop, in pixels.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        mean: mean of the red, green and blue channels, for pixels in [0, 1].
        std: standard deviation of the three channels, for pixels in [0, 1].
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Create an instance from the output of `dataclasses.asdict`; lists, as JSON has them, become tuples."""
        return cls(**{**values, "mean": _three(values["mean"]), "std": _three(values["std"])})

    def with_overrides(
        self,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> Preprocessing:
        """Return a copy with some values replaced; None keeps a value.

        `image_size` replaces `crop`, and `resize` is scaled with it unless it is given.

        Raises:
            ConfigError: `resize` is smaller than the crop.
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
    """Return the transform that resizes, center-crops, scales and normalises, as torchvision's `weights.transforms()`.

    Returns:
        A function from an RGB image to a float32 tensor of shape (3, crop, crop).
    """
    return compose(*resize_and_crop(preprocessing), *to_normalised_tensor(preprocessing))


def pixel_transform(preprocessing: Preprocessing) -> Transform:
    """Return the evaluation transform without scaling and normalisation.

    Returns:
        A function from an RGB image to a uint8 tensor of shape (3, crop, crop).
    """
    return compose(*resize_and_crop(preprocessing), v2.PILToTensor())


class Normalisation(torch.nn.Module):
    """A module that scales and normalises pixels on any device, bit-identical to the evaluation transform.

    Args:
        preprocessing: gives the mean and the standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale and normalise uint8 pixels of shape (..., 3, height, width) to float32 of the same shape."""
        # `contiguous`: in channels-last memory, as Pillow's images have it, this would take twice as long.
        return pixels.contiguous().float().mul_(1.0 / 255).sub_(self.mean.float()).div_(self.std.float())


def denormalise(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """Return a preprocessed image as a PIL image by undoing the normalisation.

    Args:
        image: floating-point tensor of shape (3, height, width).
        preprocessing: the mean and the standard deviation with which it was normalised.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels: Image.Image = v2.functional.to_pil_image((image.float() * std + mean).clamp(0, 1))
    return pixels


def tta_transform(preprocessing: Preprocessing, name: str) -> Transform:
    """Return the evaluation transform for test-time augmentation: several fixed views of each image.

    Args:
        preprocessing: the preprocessing that the weights expect.
        name: "flip" gives the image and its mirror image. "five" gives the center crop and the four corner crops of
            the resized image (Krizhevsky et al., 2012, section 4.1).

    Returns:
        A function from an RGB image to a float32 tensor of shape (views, 3, crop, crop).

    Raises:
        ConfigError: the name is unknown.
    """
    resize, center_crop = resize_and_crop(preprocessing)
    match name:
        case "flip":
            views = compose(resize, center_crop, v2.Lambda(_with_mirror_image))
        case "five":
            views = compose(resize, v2.FiveCrop(preprocessing.crop))
        case _:
            raise ConfigError(f"tta={name}: expected flip or five.")
    return partial(_stacked_views, views=views, to_tensor=compose(*to_normalised_tensor(preprocessing)))


def _with_mirror_image(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    return image, v2.functional.horizontal_flip(image)


def _stacked_views(image: Image.Image, views: Callable[[Image.Image], Any], to_tensor: Transform) -> Tensor:
    # One by one: given several plain tensors, v2's transforms would change the first one only.
    return torch.stack([to_tensor(view) for view in views(image)])


def compose(*steps: torch.nn.Module) -> Transform:
    """Return a transform that runs the steps in order (`v2.Compose`)."""
    transform: Transform = v2.Compose(list(steps))
    return transform


def resize_and_crop(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    """Return the steps that resize and center-crop an image."""
    return [
        v2.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation), antialias=True),
        v2.CenterCrop(preprocessing.crop),
    ]


def to_normalised_tensor(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    """Return the steps that turn an image into a normalised float32 tensor."""
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]


def fixed_steps(transform: Transform) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """Split a transform of `compose` into its leading Resize and CenterCrop steps, which are fixed, and the rest."""
    steps = _steps(transform)
    fixed = list(takewhile(lambda step: isinstance(step, v2.Resize | v2.CenterCrop), steps))
    return fixed, steps[len(fixed) :]


def without_normalisation(transform: Transform) -> Transform:
    """Return the transform without its final scaling and normalisation, so that it yields uint8 pixels.

    A transform that does not end with these two steps is returned as it is.
    """
    steps = _steps(transform)
    normalises = [type(step) for step in steps[-2:]] == [v2.ToDtype, v2.Normalize]
    return compose(*steps[:-2]) if normalises else transform


def _steps(transform: Transform) -> list[torch.nn.Module]:
    return list(transform.transforms) if isinstance(transform, v2.Compose) else []


class PixelPacker(torch.nn.Module):
    """A module that packs images into rows of bytes, all of the same length.

    Args:
        pixels: the largest number of pixels of an image. A larger image is resized to about this number, never more.
        nearest: resize larger images with nearest-neighbour interpolation; False uses the Lanczos filter.
    """

    SIZE_BYTES = 8  # width and height as two little-endian unsigned 32-bit integers

    def __init__(self, pixels: int, *, nearest: bool = False) -> None:
        super().__init__()
        self.pixels, self.nearest = pixels, nearest

    @property
    def row_bytes(self) -> int:
        """Return the length of a row in bytes."""
        return 3 * self.pixels + self.SIZE_BYTES

    def packed_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height at which an image of this size is packed."""
        if width * height <= self.pixels:
            return width, height
        # √(pixels · width / height) times √(pixels · height / width), each rounded down, never exceeds `pixels`.
        # Very long, thin images are an exception: their shorter side rounds to 0, and the longer may exceed `pixels`.
        packed = isqrt(self.pixels * width // height), isqrt(self.pixels * height // width)
        return min(max(packed[0], 1), self.pixels), min(max(packed[1], 1), self.pixels)

    def forward(self, image: Image.Image) -> Tensor:
        """Pack an RGB image.

        Returns:
            A uint8 tensor of shape (row_bytes,): pixels line by line, zero padding, and the original width and height.
        """
        lengths = b"".join(length.to_bytes(4, "little") for length in image.size)
        size = self.packed_size(*image.size)
        if size != image.size:
            # Not bilinear: random crops are resized again later, and detail would be lost twice.
            image = image.resize(size, Image.Resampling.NEAREST if self.nearest else Image.Resampling.LANCZOS)
        pixels = image.tobytes()
        return torch.frombuffer(bytearray(pixels.ljust(3 * self.pixels, b"\0") + lengths), dtype=torch.uint8)

    def unpack(self, row: NDArray[np.uint8]) -> Image.Image:
        """Return the image that is packed in a row; its `info["size"]` is the original (width, height)."""
        original = tuple(np.frombuffer(row[-self.SIZE_BYTES :].tobytes(), dtype="<u4").tolist())
        width, height = self.packed_size(*original)
        image = Image.frombuffer("RGB", (width, height), row[: 3 * width * height], "raw", "RGB", 0, 1)
        image.info["size"] = original
        return image


class PackedRandomResizedCrop(torch.nn.Module):
    """A module that applies a RandomResizedCrop to an unpacked image as if it still had its original size.

    Args:
        crop: the transform to apply.
    """

    def __init__(self, crop: v2.RandomResizedCrop) -> None:
        super().__init__()
        self.crop = crop

    def forward(self, image: Image.Image) -> Image.Image:
        """Crop an unpacked image and resize the crop.

        The crop is drawn for the original size in `info["size"]`, so that it is the same as without packing.
        """
        width, height = image.info["size"]
        if image.size == (width, height):
            cropped: Image.Image = self.crop(image)
            return cropped
        params = self.crop.make_params([torch.empty(1).expand(3, height, width)])
        x_scale, y_scale = image.width / width, image.height / height
        left, top = params["left"] * x_scale, params["top"] * y_scale
        right = min((params["left"] + params["width"]) * x_scale, image.width)  # rounding may exceed the image
        bottom = min((params["top"] + params["height"]) * y_scale, image.height)
        out_height, out_width = self.crop.size
        interpolation = Image.Resampling[InterpolationMode(self.crop.interpolation).name]
        return image.resize((out_width, out_height), interpolation, (left, top, right, bottom))
