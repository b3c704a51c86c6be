"""Augmentation of whole batches has the pixels and the distribution of torchvision's transforms of single images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from headstart.data import batch_operations as ops
from headstart.data.augmentation import training_transform
from headstart.data.batch_augmentation import (
    BatchAugmentation,
    RandomPart,
    colour_jitter,
    random_crop,
    random_erasing,
    random_flip,
    random_rotation,
    sizes_of,
)
from headstart.data.batch_policies import augmentation_space, rand_augment, trivial_augment
from headstart.data.preprocessing import Preprocessing, Transform, WholeImage, pixel_transform
from tests.helpers.runs import choices, composed

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


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """As sharp as an image can be."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


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


def part_of(image: Image.Image, box: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """What v2.RandomResizedCrop makes of the image when it draws this part of it."""
    left, top, width, height = box.int().tolist()
    mode = InterpolationMode(interpolation)
    return F.pil_to_tensor(F.resized_crop(image, top, left, height, width, [size, size], mode, antialias=True))


# A photograph, one that stands upright, one of just the budget, and one from which parts are enlarged.
WITHIN = [(120, 90), (70, 200), (128, 128), (31, 22)]


@pytest.mark.parametrize(("interpolation", "bound"), [("nearest", 0), ("bilinear", 1), ("bicubic", 25)])
def test_parts_of_images_within_the_budget_are_those_of_the_files(interpolation: str, bound: int) -> None:
    """Bicubic overshoots black and white, which of noise is 1 % of the pixels: torch and Pillow clip it differently."""
    images = [noise(*size, seed) for size in WITHIN for seed in range(10)]
    part = RandomPart(64, 0.35, interpolation)
    rows = torch.stack([part.whole(image) for image in images])
    found, boxes = part(rows, sizes_of(rows), generator()), part.draw(sizes_of(rows), generator())
    wanted = torch.stack([part_of(image, box, 64, interpolation) for image, box in zip(images, boxes, strict=True)])
    assert differences(found, wanted).max() <= bound
    assert differences(found, wanted).mean() < 0.3


@pytest.mark.parametrize("size", [(1, 1), (200, 200), (20_000, 2), (1, 5000)])
def test_parts_have_a_pixel_at_least(size: tuple[int, int]) -> None:
    part = RandomPart(16, 0.08, "bilinear")
    rows = part.whole(Image.new("RGB", size, (10, 20, 30))).repeat(20, 1)
    assert torch.equal(
        part(rows, sizes_of(rows), generator()), torch.tensor([10, 20, 30]).view(3, 1, 1).expand(20, 3, 16, 16)
    )


def test_a_part_smaller_than_a_pixel_is_the_pixel_there() -> None:
    image = F.pil_to_tensor(noise(20, 10))
    boxes = torch.tensor([[19.6, 9.7, 0.3, 0.2], [3.2, 0, 0.1, 0.4]])
    corner, other = ops.resized_parts([image, image], boxes, 4, "bilinear")
    assert torch.equal(corner, image[:, 9:, 19:].expand(3, 4, 4))
    assert torch.equal(other, image[:, :1, 3:4].expand(3, 4, 4))


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 2000).map(lambda side: side**2))
@example(10**6, 2, 448**2)
@example(1, 10**6, 448**2)
@example(1000, 1000, 448**2)
def test_images_are_kept_in_their_proportions_within_the_budget(width: int, height: int, budget: int) -> None:
    wide, high = WholeImage(budget, "bilinear").kept_size(width, height)
    assert min(wide, high) >= 1
    assert wide * high <= budget
    if width * height <= budget:
        assert (wide, high) == (width, height)
    else:
        exactly = [length * math.sqrt(budget / (width * height)) for length in (width, height)]
        if min(exactly) >= 1:  # a line has a pixel across, however long it is
            assert [wide, high] == pytest.approx([length - 0.5 for length in exactly], abs=0.5 + 1e-6)


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (9, 9), (40, 30)])
def test_a_row_is_the_image_then_zeros_then_the_size_that_it_had(size: tuple[int, int]) -> None:
    whole, image = WholeImage(81, "bilinear"), noise(*size)
    row = whole(image)
    assert (row.shape, row.dtype) == ((whole.row_bytes,), torch.uint8)
    assert sizes_of(row[None]).tolist() == [list(size)]
    wide, high = whole.kept_size(*size)
    kept = F.pil_to_tensor(image if (wide, high) == size else image.resize((wide, high), Image.Resampling.LANCZOS))
    assert torch.equal(row[: kept.numel()].view(3, high, wide), kept)
    assert not row[kept.numel() : -WholeImage.SIZE_BYTES].any()


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


def gradients(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, side by side and one above the other: how sharp images are."""
    return torch.stack([images.double().diff(dim=axis).abs().mean() for axis in (3, 2)])


def sharpness_of_standard(size: tuple[int, int], draws: int) -> Tensor:
    """Gradients of parts of a mosaic from its row, over those of parts of the image: of `gradients`' two directions."""
    preprocessing = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image = noise(size[0] // 2, size[1] // 2).resize(size, Image.Resampling.NEAREST)
    transform = training_transform(preprocessing, "standard", scale=0.35)
    torch.manual_seed(0)
    theirs = torch.stack([transform(image) for _ in range(draws)])
    augmentation = BatchAugmentation(preprocessing, CPU, "standard", scale=0.35)
    assert augmentation.whole
    ours = augmentation(augmentation.whole(image).repeat(draws, 1), seed=1)
    return gradients(ours) / gradients(theirs)


def test_parts_of_sharp_images_are_as_sharp_as_those_of_the_files() -> None:
    assert sharpness_of_standard((500, 375), draws=150).tolist() == pytest.approx([1, 1], abs=0.03)


@pytest.mark.parametrize(("size", "wanted"), [((1500, 500), 0.98), ((2000, 1500), 0.96)])
def test_parts_of_images_beyond_the_budget_are_nearly_as_sharp_in_both_directions(
    size: tuple[int, int], wanted: float
) -> None:
    """They are resampled twice. Mosaics of two pixels are near the worst case; photographs lose nothing."""
    assert sharpness_of_standard(size, draws=40).tolist() == pytest.approx([wanted, wanted], abs=0.05)


def test_parts_of_photographs_are_as_sharp_as_those_of_the_files(shared: Path) -> None:
    """Two in three are within the budget. Parts of the others differ by two levels: resampled twice, edges rounded."""
    part, means, found, wanted = RandomPart(224, 0.35, "bilinear"), {True: [], False: []}, [], []
    for path in sorted((shared / "data" / "hymenoptera").rglob("*.jpg"))[::10]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        row = part.whole(image)[None]
        found.append(part(row, sizes_of(row), generator(7)))
        wanted.append(part_of(image, part.draw(sizes_of(row), generator(7))[0], 224)[None])
        means[image.width * image.height <= part.whole.pixels].append(float(differences(found[-1], wanted[-1]).mean()))
    assert np.mean(means[True]) < 0.3
    assert np.mean(means[False]) < 2.5
    assert (gradients(torch.cat(found)) / gradients(torch.cat(wanted))).tolist() == pytest.approx([1, 1], abs=0.04)


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


def assert_alike(ours: Tensor, theirs: Tensor) -> None:
    """Of equal distribution, under a noise of one level: many images have the same numbers but for rounding."""
    rng = np.random.default_rng(0)
    found, wanted = statistics(ours), statistics(theirs)
    for name in wanted:
        a, b = (values[name] + rng.uniform(-1, 1, len(values[name])) for values in (found, wanted))
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
    assert_alike(ours, theirs)


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
