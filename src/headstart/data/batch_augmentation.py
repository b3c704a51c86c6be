"""The training augmentations of `transforms.py` on whole batches, where they are trained on.

What is random is drawn on the CPU, for all images of a batch at once and from one seed: the same on every device. It
has the distribution that the transform of single images has; see `tests/data/test_batch_augmentation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headstart.data import batch_operations as ops
from headstart.data.batch_policies import rand_augment, trivial_augment
from headstart.data.preprocessing import Preprocessing, WholeImage, normalisation

Step = Callable[[Tensor, torch.Generator], Tensor]  # from uint8 images (batch, 3, height, width) to such
TRIES = 10  # to draw a part that fits, as torchvision's RandomResizedCrop
PART_RATIOS = (3 / 4, 4 / 3)  # of the parts' width to their height, likewise
ERASED_SHARES, ERASED_RATIOS = (0.02, 0.33), (1 / 3.3, 1 / 0.3)  # of what v2.RandomErasing takes


class BatchAugmentation:
    """Random changes to a batch of images on a device, and their normalisation.

    Args:
        preprocessing: what the weights expect.
        device: where.
        name: of the augmentation, one of `training_transform`.
        **settings: its arguments.

    Attributes:
        whole: what gives its images, if it takes random parts of them; None if it takes those of evaluation.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device, name: str, **settings: Any) -> None:
        self.device, self.normalise = device, normalisation(preprocessing)
        self.erasing = settings.get("random_erasing", 0.0)
        self.part: RandomPart | None = None
        self.side = preprocessing.crop
        part = partial(RandomPart, interpolation=preprocessing.interpolation)
        self.steps: list[Step]
        match name:
            case "none":
                self.steps = []
            case "flip":
                self.steps = [random_flip]
            case "pad_crop":
                self.steps = [partial(random_crop, padding=int(settings["padding"])), random_flip]
            case "standard":
                self.part, self.steps = part(preprocessing.crop, settings["scale"]), [random_flip]
            case "caltech":
                self.part = part(preprocessing.resize, settings["scale"])
                turn = partial(random_rotation, degrees=settings["degrees"])
                jitter = partial(colour_jitter, strength=settings["colour"])
                self.steps = [turn, jitter, partial(centre_crop, size=preprocessing.crop), random_flip]
            case "randaugment":
                self.part = part(preprocessing.crop, settings["scale"])
                policy = partial(rand_augment, operations=settings["operations"], magnitude=settings["magnitude"])
                self.steps = [random_flip, policy]
            case "trivialaugment":
                self.part, self.steps = part(preprocessing.crop, settings["scale"]), [random_flip, trivial_augment]
            case _:
                raise ValueError(f"no augmentation is called {name!r}")

    @property
    def whole(self) -> WholeImage | None:
        """What gives the images that random parts are cut out of."""
        return self.part.whole if self.part else None

    def __call__(self, rows: Tensor, seed: int) -> Tensor:
        """Augments a batch.

        Args:
            rows: uint8, of shape (batch, width), on the CPU: images of `whole`, or pixels of shape (3, crop, crop).
            seed: of all that is random.

        Returns:
            float32 of shape (batch, 3, crop, crop), normalised, on the device.
        """
        generator = torch.Generator().manual_seed(seed)
        there = rows.to(self.device, non_blocking=True)
        images = self.part(there, sizes_of(rows), generator) if self.part else there.view(-1, 3, self.side, self.side)
        for step in self.steps:
            images = step(images, generator)
        images = self.normalise(images)
        return random_erasing(images, generator, self.random_erasing) if self.erasing else images


def sizes_of(rows: Tensor) -> Tensor:
    """Width and height that images of `WholeImage` had: float64 of shape (batch, 2)."""
    sizes = rows[:, -WholeImage.SIZE_BYTES :].clone(memory_format=torch.contiguous_format)  # where numbers may begin
    return sizes.view(torch.int32).double()


class RandomPart:
    """Cuts a random part out of each image and resizes it: v2.RandomResizedCrop.

    Args:
        size: side of the result, in pixels.
        scale: smallest share of the image's area.
        interpolation: as of `Preprocessing`.
    """

    def __init__(self, size: int, scale: float, interpolation: str) -> None:
        self.size, self.scale, self.interpolation = size, scale, interpolation
        # Twice the side: photographs of 500 by 375 pixels are within it where the network sees 224, and their parts are
        # those of the files. Parts of larger images are resampled twice, and nearly as sharp.
        self.whole = WholeImage((2 * size) ** 2, interpolation)

    def __call__(self, rows: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """From rows of `whole`, and the sizes that the images had, to uint8 (batch, 3, size, size)."""
        kept = [self.whole.kept_size(width, height) for width, height in sizes.int().tolist()]
        images = [row[: 3 * high * wide].view(3, high, wide) for row, (wide, high) in zip(rows, kept, strict=True)]
        shrunk = torch.tensor(kept, dtype=torch.float64) / sizes
        boxes = self.draw(sizes, generator) * shrunk.repeat(1, 2)
        return ops.resized_parts(images, boxes, self.size, self.interpolation)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """Draws a part of each image.

        Args:
            sizes: width and height, shape (batch, 2).
            generator: what is random.

        Returns:
            Left, top, width and height in whole pixels, float64 of shape (batch, 4).
        """
        width, height = sizes.double().T
        places, found = draw_rectangles(sizes, (self.scale, 1), PART_RATIOS, generator)
        # Where none fits, the middle, of the ratio that is closest to the image's.
        widest, highest = (height * PART_RATIOS[1]).round(), (width / PART_RATIOS[0]).round()
        middle = torch.stack([width.minimum(widest), height.minimum(highest)], dim=1)
        middle = torch.cat([((sizes - middle) / 2).floor(), middle], dim=1)
        return torch.where(found[:, None], places, middle)


def draw_rectangles(
    sizes: Tensor,
    shares: tuple[float, float],
    ratios: tuple[float, float],
    generator: torch.Generator,
    *,
    spare: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draws a rectangle in each image: its share of the area uniformly, its ratio too but in logarithms, its place.

    Args:
        sizes: width and height in whole pixels, float64 of shape (batch, 2).
        shares: of the image's area, the smallest and the largest.
        ratios: of width to height, likewise.
        generator: what is random.
        spare: how many pixels a rectangle has to be narrower and lower than its image, at least.

    Returns:
        Left, top, width and height in whole pixels, float64 of shape (batch, 4); and whether one of `TRIES` was inside
        of the image, bool of shape (batch,).
    """
    shape = (len(sizes), TRIES)
    areas = sizes.prod(dim=1, keepdim=True) * _uniform(shape, *shares, generator)
    roots = (_uniform(shape, math.log(ratios[0]), math.log(ratios[1]), generator) / 2).exp()
    tried = torch.stack([areas.sqrt() * roots, areas.sqrt() / roots], dim=2).round()
    fits = ((tried > 0) & (tried <= sizes[:, None] - spare)).all(dim=2)
    lengths = tried[torch.arange(len(sizes)), fits.int().argmax(dim=1)]
    free = (sizes - lengths).clamp(min=0) + 1
    corner = (torch.rand(free.shape, generator=generator, dtype=torch.float64) * free).floor()
    return torch.cat([corner, lengths], dim=1), fits.any(dim=1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right, one time in two."""
    which = torch.rand(len(images), generator=generator) < 0.5
    return ops.flipped(images, which.to(images.device))


def random_crop(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Pads with black and crops back to size at a random place."""
    left, top = torch.randint(2 * padding + 1, (2, len(images)), generator=generator).to(images.device)
    return ops.crops(F.pad(images, [padding] * 4), left, top, images.shape[3])


def centre_crop(images: Tensor, _: torch.Generator, size: int) -> Tensor:
    """Cuts the middle out, where v2.CenterCrop does."""
    start = round((images.shape[3] - size) / 2)
    return images[:, :, start : start + size, start : start + size]


def random_rotation(images: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    """Turns each image by up to this much to either side."""
    return ops.rotate(images, ops.strengths_of(_uniform((len(images),), -degrees, degrees, generator), images))


def colour_jitter(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation, in an order that is drawn for each image."""
    kinds = (ops.brightness, ops.contrast, ops.saturation)
    factors = _uniform((len(images), len(kinds)), max(0, 1 - strength), 1 + strength, generator)
    orders = torch.rand((len(images), len(kinds)), generator=generator).argsort(dim=1)
    for order in orders.T:
        changes = [(kind, order == number, factors[:, number]) for number, kind in enumerate(kinds)]
        images = ops.each(images, changes)
    return images


def random_erasing(images: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Sets a random rectangle of normalised images to 0, which is the mean (Zhong et al., arXiv:1708.04896)."""
    batch, _, height, width = images.shape
    sizes = torch.tensor([width, height], dtype=torch.float64).repeat(batch, 1)
    boxes, found = draw_rectangles(sizes, ERASED_SHARES, ERASED_RATIOS, generator, spare=1)
    erased = found & (torch.rand(batch, generator=generator) < probability)
    left, top, wide, high = boxes.float().to(images.device).view(batch, 4, 1, 1, 1).unbind(1)
    columns = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device).view(-1, 1)
    inside = (columns >= left) & (columns < left + wide) & (rows >= top) & (rows < top + high)
    return images.masked_fill(inside & erased.to(images.device).view(-1, 1, 1, 1), 0)
