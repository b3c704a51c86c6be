"""Augmentation of whole batches has the pixels and the distribution of torchvision's transforms of single images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from headstart.data import batch_operations as ops
from headstart.data.batch_augmentation import (
    BatchAugmentation,
    RandomPart,
    colour_jitter,
    random_crop,
    random_erasing,
    random_flip,
    random_rotation,
)
from headstart.data.batch_policies import augmentation_space, rand_augment, trivial_augment
from headstart.data.transforms import Preprocessing, Transform, pixel_transform, training_transform

from .conftest import composed
from .test_config import choices

CPU = torch.device("cpu")
SMALL = Preprocessing(36, 32, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
DRAWS = 400
UNLIKELY = 1e-4  # seeds are fixed: a test below this means another distribution, not bad luck


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with an edge and a little noise: not the same when it is mirrored or turned."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [x, y * x, (x - y) ** 2 * 0.6 + 0.4 * (y > 0.6)]
    pixels = np.stack(planes, axis=2) * 200 + rng.normal(20, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PICTURES = [picture(48, 40, seed) for seed in range(4)]
BATCH = torch.stack([F.pil_to_tensor(image) for image in PICTURES])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(operation: Callable[[Image.Image], Image.Image]) -> Tensor:
    return torch.stack([F.pil_to_tensor(operation(image)) for image in PICTURES])


def differences(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.int() - theirs.int()).abs().float()


OPERATIONS: dict[str, tuple[ops.Operation, Callable[[Image.Image, float], Image.Image], list[float]]] = {
    "brightness": (ops.brightness, F.adjust_brightness, [0.1, 0.7, 1.9]),
    "contrast": (ops.contrast, F.adjust_contrast, [0.1, 0.7, 1.9]),
    "saturation": (ops.saturation, F.adjust_saturation, [0.1, 0.7, 1.9]),
    "sharpness": (ops.sharpness, F.adjust_sharpness, [0.1, 0.7, 1.9]),
    "posterize": (ops.posterize, lambda image, bits: F.posterize(image, int(bits)), [8, 5, 2]),
    "solarize": (ops.solarize, lambda image, share: F.solarize(image, share * 255), [1, 0.6, 0]),
    "autocontrast": (ops.autocontrast, lambda image, _: F.autocontrast(image), [0]),
    "equalize": (ops.equalize, lambda image, _: F.equalize(image), [0]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colours_are_those_of_pillow_to_one_level(name: str) -> None:
    ours, theirs, strengths = OPERATIONS[name]
    for strength in strengths:
        wanted = each(lambda image, strength=strength: theirs(image, strength))
        assert differences(ours(BATCH, torch.full((4,), float(strength))), wanted).max() <= 1


def _sheared(image: Image.Image, x: float = 0.0, y: float = 0.0) -> Image.Image:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def _moved(image: Image.Image, x: int = 0, y: int = 0) -> Image.Image:
    return F.affine(image, angle=0.0, translate=[x, y], scale=1.0, shear=[0.0, 0.0])


GEOMETRY: dict[str, tuple[ops.Operation, Callable[[Image.Image, float], Image.Image], list[float]]] = {
    "rotate": (ops.rotate, F.rotate, [12.3, -77.7]),
    "shear_x": (ops.shear_x, lambda image, strength: _sheared(image, x=strength), [0.09, -0.31]),
    "shear_y": (ops.shear_y, lambda image, strength: _sheared(image, y=strength), [0.09, -0.31]),
    "translate_x": (ops.translate_x, lambda image, strength: _moved(image, x=int(strength)), [5.9, -5.9]),
    "translate_y": (ops.translate_y, lambda image, strength: _moved(image, y=int(strength)), [5.9, -5.9]),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_pillows_but_where_two_pixels_are_as_near(name: str) -> None:
    ours, theirs, strengths = GEOMETRY[name]
    for strength in strengths:
        wanted = each(lambda image, strength=strength: theirs(image, strength))
        assert (differences(ours(BATCH, torch.full((4,), float(strength))), wanted) > 0).float().mean() < 0.01


def test_each_image_has_a_strength_of_its_own() -> None:
    strengths = torch.tensor([0.3, 0.8, 1.2, 1.7])
    for operation in (ops.brightness, ops.contrast, ops.saturation, ops.sharpness, ops.rotate, ops.shear_x):
        together = operation(BATCH, strengths)
        alone = [operation(BATCH[i : i + 1], strengths[i : i + 1]) for i in range(4)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("size", [17, 90])
@pytest.mark.parametrize(("interpolation", "bound"), [("nearest", 0), ("bilinear", 1), ("bicubic", 9)])
def test_a_part_is_resized_as_pillow_does(interpolation: str, bound: int, size: int) -> None:
    boxes = torch.tensor([[10.0, 5, 31, 22]]).repeat(4, 1)
    mode = InterpolationMode(interpolation)
    wanted = each(lambda image: F.resized_crop(image, 5, 10, 22, 31, [size, size], mode, antialias=True))
    found = differences(ops.resized_parts(BATCH, boxes, size, interpolation), wanted)
    assert found.max() <= bound  # bicubic: Pillow rounds and clips between the two directions
    assert found.mean() < 0.3


def test_parts_are_the_same_on_a_processor_but_for_the_edges_pixel() -> None:
    images = torch.stack([F.pil_to_tensor(picture(200, 200, seed)) for seed in range(4)])
    boxes = torch.tensor([[0.0, 0, 200, 200], [13.4, 20.7, 150.2, 111.8], [199.6, 3, 0.3, 0.2], [60, 50, 70.5, 80.5]])
    for interpolation in ("nearest", "bilinear", "bicubic"):
        ours, theirs = (f(images, boxes, 64, interpolation) for f in (ops.resized_parts, ops.resized_parts_on_cpu))
        assert differences(ours[0], theirs[0]).max() <= 9
        assert differences(ours, theirs).flatten(1).mean(dim=1).max() < 10  # nearest takes another pixel of the noise


# What v2.RandomResizedCrop, with its ratios from 3:4 to 4:3, has to fall back for in the last three.
@pytest.mark.parametrize("size", [(500, 375), (64, 64), (300, 700), (100, 25), (20, 200), (1, 1)])
@pytest.mark.parametrize("scale", [0.08, 0.35, 0.9])
def test_parts_are_drawn_as_torchvision_draws_them(size: tuple[int, int], scale: float) -> None:
    width, height = size
    ours = RandomPart(32, scale, "bilinear").draw(torch.tensor([size] * 2000), generator()).numpy()
    torch.manual_seed(1)
    transform, image = v2.RandomResizedCrop(32, scale=(scale, 1.0)), torch.empty(3, height, width)
    drawn = [transform.make_params([image]) for _ in range(2000)]
    theirs = np.array([[box["left"], box["top"], box["width"], box["height"]] for box in drawn], dtype=float)
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= [width, height]).all()
    for what in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 2] / box[:, 3],
        *(lambda box, n=n: box[:, n] for n in range(4)),
    ):
        assert ks_2samp(what(ours), what(theirs)).pvalue > UNLIKELY


def test_images_of_different_sizes_are_drawn_for_each_by_its_own() -> None:
    sizes = torch.tensor([[500, 375], [30, 20], [1, 9]])
    boxes = RandomPart(32, 0.35, "bilinear").draw(sizes, generator())
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    assert boxes[2].tolist() == [0, 4, 1, 1]


@pytest.mark.parametrize("size", [(500, 375), (300, 420), (60, 45)])
def test_parts_of_whole_images_are_parts_of_the_images(size: tuple[int, int]) -> None:
    image = picture(*size)
    part = RandomPart(64, 0.35, "bilinear")
    rows = torch.stack([part.whole(image)] * 20)
    sizes = torch.tensor([size] * 20)
    ours = part(rows, sizes, generator())
    for mine, box in zip(ours, part.draw(sizes, generator()).int().tolist(), strict=True):
        left, top, width, height = box
        wanted = F.resized_crop(image, top, left, height, width, [64, 64], InterpolationMode.BILINEAR, antialias=True)
        assert differences(mine, F.pil_to_tensor(wanted)).mean() < 2.5


def test_parts_of_photographs_differ_by_resampling_alone(shared: Path) -> None:
    """By two levels of 255 on the average, on a processor by three; bilinear and bicubic differ by 1.2."""
    part, means, means_on_cpu = RandomPart(224, 0.35, "bilinear"), [], []
    for path in sorted((shared / "data" / "hymenoptera").rglob("*.jpg"))[::20]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        sizes = torch.tensor([image.size])
        on_cpu = part(part.whole(image)[None], sizes, generator(7))
        box = part.draw(sizes, generator(7))
        left, top, width, height = box.int()[0].tolist()
        squashed, scaled = part.whole.squash(image)[None], (box * part.whole.side / sizes.repeat(1, 2)).float()
        mine = ops.resized_parts(squashed, scaled, 224, "bilinear")
        wanted = F.resized_crop(image, top, left, height, width, [224, 224], InterpolationMode.BILINEAR, antialias=True)
        means.append(float(differences(mine[0], F.pil_to_tensor(wanted)).mean()))
        means_on_cpu.append(float(differences(on_cpu[0], F.pil_to_tensor(wanted)).mean()))
    assert np.mean(means) < 2
    assert np.mean(means_on_cpu) < 3


def test_one_in_two_is_mirrored() -> None:
    images = BATCH[:1].repeat(1000, 1, 1, 1)
    flipped = random_flip(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert ((flipped == images).flatten(1).all(dim=1) ^ mirrored).all()
    assert binomtest(int(mirrored.sum()), 1000).pvalue > UNLIKELY


def test_padded_images_are_cut_at_every_place_alike() -> None:
    square = BATCH[:1, :, :40, :40]
    padded = torch.nn.functional.pad(square, [2] * 4)[0]
    places = [padded[:, top : top + 40, left : left + 40] for top in range(5) for left in range(5)]
    cut = random_crop(square.repeat(2000, 1, 1, 1), generator(), padding=2)
    counts = [int((cut == place).flatten(1).all(dim=1).sum()) for place in places]
    assert sum(counts) == 2000
    assert chisquare(counts).pvalue > UNLIKELY


STEPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image]]] = {
    "rotation": (lambda x: random_rotation(x, generator(), 30), v2.RandomRotation(30)),
    "jitter": (lambda x: colour_jitter(x, generator(), 0.4), v2.ColorJitter(0.4, 0.4, 0.4)),
    "randaugment, one": (lambda x: rand_augment(x, generator(), 1, 9), v2.RandAugment(1, 9)),
    "randaugment, two": (lambda x: rand_augment(x, generator(), 2, 17), v2.RandAugment(2, 17)),
    "trivialaugment": (lambda x: trivial_augment(x, generator()), v2.TrivialAugmentWide()),
}


def statistics(images: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """A few numbers of each image that tell where and how it was changed."""
    values = images.double()
    return {
        "mean": values.mean(dim=(1, 2, 3)).numpy(),
        "deviation": values.std(dim=(1, 2, 3)).numpy(),
        "red over blue": (values[:, 0].mean(dim=(1, 2)) - values[:, 2].mean(dim=(1, 2))).numpy(),
        "left over right": (values[..., :8].mean(dim=(1, 2, 3)) - values[..., -8:].mean(dim=(1, 2, 3)))
        .numpy()
        .round(2),
        "top over bottom": (values[..., :8, :].mean(dim=(1, 2, 3)) - values[..., -8:, :].mean(dim=(1, 2, 3)))
        .numpy()
        .round(2),
        "edges": values.diff(dim=3).abs().mean(dim=(1, 2, 3)).numpy(),
    }


def assert_alike(ours: Tensor, theirs: Tensor, *, sharp: bool = True, noise: float = 1.0) -> None:
    """Of equal distribution, under a noise of this many levels: many images have the same numbers but for rounding."""
    rng = np.random.default_rng(0)
    found, wanted = statistics(ours), statistics(theirs)
    for name in wanted if sharp else set(wanted) - {"edges"}:
        a, b = (values[name] + rng.uniform(-noise, noise, len(values[name])) for values in (found, wanted))
        assert ks_2samp(a, b).pvalue > UNLIKELY, name


@pytest.mark.parametrize("name", STEPS)
def test_random_steps_have_torchvisions_distribution(name: str) -> None:
    ours, theirs = STEPS[name]
    torch.manual_seed(3)
    drawn = torch.stack([F.pil_to_tensor(theirs(PICTURES[0])) for _ in range(1500)])
    assert_alike(ours(BATCH[:1].repeat(1500, 1, 1, 1)), drawn)


@pytest.mark.parametrize(("wide", "policy"), [(False, v2.RandAugment), (True, v2.TrivialAugmentWide)])
def test_operations_have_torchvisions_strengths(wide: bool, policy: Any) -> None:
    levels = torch.arange(31) / 30
    ours = augmentation_space(48, wide=wide)
    assert set(ours) == set(policy._AUGMENTATION_SPACE)
    for name, (values, signed) in policy._AUGMENTATION_SPACE.items():
        wanted = values(31, 48, 48)
        assert ours[name].signed == signed
        for sign in (1.0, -1.0) if wanted is not None else ():
            theirs = wanted * (sign if signed else 1) + ours[name].base
            torch.testing.assert_close(ours[name].at(levels, torch.full((31,), sign)), theirs.float())


def test_operations_are_chosen_alike() -> None:
    """Black, white and grey stripes on which no two operations with a strength of their own give the same."""
    images = BATCH[:1].repeat(3000, 1, 1, 1)
    kinds = torch.unique(rand_augment(images, generator(), 1, 15), dim=0, return_counts=True)[1]
    # Fourteen operations, nine of them with two signs: Identity is among the kinds, too.
    assert len(kinds) == 14 + 9
    wanted = [3000 / 14 if count > 3000 / 14 * 0.75 else 3000 / 28 for count in kinds.tolist()]
    assert sorted(round(value) for value in wanted) == [107] * 18 + [214] * 5
    assert chisquare(kinds.numpy(), np.array(wanted)).pvalue > UNLIKELY


def test_rectangles_are_erased_as_torchvision_does() -> None:
    images = torch.ones(2000, 3, 24, 30)
    ours = random_erasing(images, generator(), 0.3)
    torch.manual_seed(2)
    theirs = torch.stack([v2.RandomErasing(0.3)(image) for image in images])
    assert abs((ours == 1).flatten(1).all(dim=1).float().mean() - 0.7) < 0.04
    for found in (ours, theirs):
        assert torch.equal(found[:, 0], found[:, 2])
    for axis in (1, 2):  # how wide, how high, and where
        for what in (lambda gone: gone.sum(dim=1), lambda gone: gone.int().argmax(dim=1)):
            mine, torchvisions = (what((found[:, 0] == 0).any(dim=axis)).numpy() for found in (ours, theirs))
            assert ks_2samp(mine, torchvisions).pvalue > UNLIKELY


def settings_of(name: str) -> dict[str, Any]:
    return composed(f"augment={name}").augment.of_images()


def rows_for(augmentation: BatchAugmentation, image: Image.Image, count: int) -> Tensor:
    base: Transform = augmentation.whole or pixel_transform(SMALL)
    return base(image).flatten().repeat(count, 1)


@pytest.mark.parametrize("name", choices("augment"))
def test_every_augmentation_has_the_distribution_of_single_images(name: str) -> None:
    image = picture(60, 44)
    transform = training_transform(SMALL, **settings_of(name))
    torch.manual_seed(0)
    theirs = torch.stack([transform(image) for _ in range(DRAWS)])
    augmentation = BatchAugmentation(SMALL, CPU, **settings_of(name))
    ours = augmentation(rows_for(augmentation, image, DRAWS), seed=1)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if name == "none":
        assert torch.equal(ours, theirs)
    deviation, mean = torch.tensor(SMALL.std).view(3, 1, 1), torch.tensor(SMALL.mean).view(3, 1, 1)
    ours, theirs = ((images * deviation + mean) * 255 for images in (ours, theirs))
    # Of whole images, which are resampled twice, the finest grain is lost.
    assert_alike(ours, theirs, sharp=augmentation.whole is None, noise=2)


@pytest.mark.parametrize("name", choices("augment"))
def test_a_batch_depends_on_its_seed_alone(name: str) -> None:
    augmentation = BatchAugmentation(SMALL, CPU, **settings_of(name))
    rows = rows_for(augmentation, PICTURES[0], 8)
    state = torch.get_rng_state()
    first, again, other = (augmentation(rows, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert name == "none" or not torch.equal(first, other)
    assert name == "none" or not all(torch.equal(first[0], image) for image in first)
    assert torch.equal(torch.get_rng_state(), state)
