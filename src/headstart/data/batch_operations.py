"""Operations on a batch of uint8 images of shape (batch, 3, height, width), each image with a strength of its own.

They are those of `torchvision.transforms.v2.functional` on PIL images, which take one image or one strength for all.
Every strength is a float32 tensor of shape (batch,) on the images' device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

Operation = Callable[[Tensor, Tensor], Tensor]


def strengths_of(values: Tensor, images: Tensor) -> Tensor:
    """Strengths as the operations take them."""
    return values.float().to(images.device)


def each(images: Tensor, changes: Sequence[tuple[Operation, Tensor, Tensor]]) -> Tensor:
    """Changes groups of images: for each an operation, a bool for every image, and strengths of every image."""
    changed = images.clone()
    for operation, which, strengths in changes:
        if which.any():
            here = which.nonzero()[:, 0]
            there = here.to(images.device)
            changed[there] = operation(images[there], strengths_of(strengths[here], images))
    return changed


def resized_parts(images: Sequence[Tensor], boxes: Tensor, size: int, interpolation: str) -> Tensor:
    """Cuts a part out of each image and resizes it to a square, antialiased.

    One image after another: they have sizes of their own. Nothing in it waits for a GPU.

    Args:
        images: uint8, each of shape (3, height, width).
        boxes: left, top, width and height of the parts in pixels, shape (batch, 4), on the CPU; their edges are rounded
            to whole pixels.
        size: side of the results, in pixels.
        interpolation: "nearest", "bilinear" or "bicubic".

    Returns:
        uint8 of shape (batch, 3, size, size), on the images' device.
    """
    edges = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).round().int().tolist()
    # torch's own nearest takes the pixel at the corner, Pillow's that in the middle.
    mode = InterpolationMode("nearest-exact" if interpolation == "nearest" else interpolation)
    parts = []
    for image, (left, top, right, bottom) in zip(images, edges, strict=True):
        top, left = min(top, image.shape[1] - 1), min(left, image.shape[2] - 1)
        part = image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        parts.append(v2.resize(part, [size, size], interpolation=mode, antialias=True))
    return torch.stack(parts)


def crops(images: Tensor, left: Tensor, top: Tensor, size: int) -> Tensor:
    """Cuts a square out of each image; left and top are int64 of shape (batch,)."""
    batch, channels = (torch.arange(n, device=images.device) for n in images.shape[:2])
    offsets = torch.arange(size, device=images.device)
    rows, columns = top[:, None] + offsets, left[:, None] + offsets
    return images[batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """Mirrors those images left to right for which the bool is true."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """The nearest pixel of the place that each matrix maps a pixel to, relative to the middle; black outside.

    Args:
        images: the batch.
        matrices: of shape (batch, 2, 3), in pixels.
    """
    height, width = images.shape[2:]
    # Over the places from -1 to 1 that grid_sample has: x = place · width / 2.
    scale = torch.tensor([width / 2, height / 2, 1.0], device=images.device)
    theta = matrices * scale / scale[:2, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _matrices(batch: int, device: torch.device) -> Tensor:
    return torch.eye(2, 3, device=device).repeat(batch, 1, 1)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns counterclockwise about the middle."""
    matrices, angles = _matrices(len(images), images.device), degrees * (math.pi / 180)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angles.sin(), angles.sin()
    return _warped(images, matrices)


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    """Moves each row by a share of its distance from the upper edge."""
    matrices = _matrices(len(images), images.device)
    matrices[:, 0, 1], matrices[:, 0, 2] = strength, strength * images.shape[2] / 2
    return _warped(images, matrices)


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    """Moves each column by a share of its distance from the left edge."""
    matrices = _matrices(len(images), images.device)
    matrices[:, 1, 0], matrices[:, 1, 2] = strength, strength * images.shape[3] / 2
    return _warped(images, matrices)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Moves to the right by whole pixels."""
    matrices = _matrices(len(images), images.device)
    matrices[:, 0, 2] = -pixels.trunc()
    return _warped(images, matrices)


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Moves downwards by whole pixels."""
    matrices = _matrices(len(images), images.device)
    matrices[:, 1, 2] = -pixels.trunc()
    return _warped(images, matrices)


def _blended(images: Tensor, base: Tensor | float, factor: Tensor) -> Tensor:
    """From `base` (factor 0) over the image (factor 1) to beyond; truncated to whole numbers as Pillow does."""
    return (base + factor.view(-1, 1, 1, 1) * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601), rounded: float32 of shape (batch, 1, height, width)."""
    shares = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(-1, 1, 1)
    return (images.float() * shares).sum(dim=1, keepdim=True).round()


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Black at 0, the image at 1."""
    return _blended(images, 0.0, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The image's mean grey at 0, the image at 1."""
    return _blended(images, _grey(images).mean(dim=(2, 3), keepdim=True).round(), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Grey at 0, the image at 1."""
    return _blended(images, _grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blurred at 0, the image at 1; the outermost pixels stay."""
    if min(images.shape[2:]) <= 2:
        return images
    kernel = torch.ones((3, 3), device=images.device)
    kernel[1, 1] = 5
    blurred = images.float()
    smooth = F.conv2d(blurred, (kernel / kernel.sum()).expand(3, 1, 3, 3), groups=3)
    blurred[:, :, 1:-1, 1:-1] = smooth.round()
    return _blended(images, blurred, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps this many of the eight bits, a whole number from 0 to 8."""
    kept: Tensor = images & (256 - 2 ** (8 - bits)).to(torch.uint8).view(-1, 1, 1, 1)
    return kept


def solarize(images: Tensor, share: Tensor) -> Tensor:
    """Inverts pixels from this share of 255 on."""
    return torch.where(images >= 255 * share.view(-1, 1, 1, 1), 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to the whole range."""
    stretched: Tensor = v2.autocontrast(images)
    return stretched


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flattens the histogram of each channel."""
    flat: Tensor = v2.equalize(images)
    return flat
