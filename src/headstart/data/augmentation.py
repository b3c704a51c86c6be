"""Data augmentation: random transforms of training images, and MixUp and CutMix of batches."""

from __future__ import annotations

from torch import nn
from torchvision.transforms import InterpolationMode, v2

from headstart.data.preprocessing import (
    Preprocessing,
    Transform,
    compose,
    resize_and_crop,
    to_normalised_tensor,
)


def training_transform(
    preprocessing: Preprocessing, name: str, *, random_erasing: float = 0.0, **settings: float
) -> Transform:
    """Return the random transform of training images.

    Args:
        preprocessing: the preprocessing that the weights expect; the output has its size and normalisation.
        name: none, flip, pad_crop, standard, caltech, randaugment or trivialaugment.
        random_erasing: probability that a rectangle of 2 to 33 % of the image is replaced by the mean colour.
        **settings: the arguments of that augmentation, named as in `conf/augment/`.

    Returns:
        A function from an RGB image to a float32 tensor of shape (3, crop, crop). It draws from torch's generator.

    Raises:
        ValueError: the name is unknown.
    """
    tensor = to_normalised_tensor(preprocessing)
    if random_erasing > 0:
        tensor.append(v2.RandomErasing(random_erasing))  # after normalisation, where 0 is the mean colour
    crop, flip = preprocessing.crop, v2.RandomHorizontalFlip()
    match name:
        case "none":
            steps = resize_and_crop(preprocessing)
        case "flip":
            steps = [*resize_and_crop(preprocessing), flip]
        case "pad_crop":
            steps = [*resize_and_crop(preprocessing), v2.RandomCrop(crop, padding=int(settings["padding"])), flip]
        case "standard":
            steps = [_random_crop(preprocessing, crop, **settings), flip]
        case "caltech":
            steps = [*_caltech_steps(preprocessing, **settings), flip]
        case "randaugment":
            policy = v2.RandAugment(num_ops=int(settings["num_ops"]), magnitude=int(settings["magnitude"]))
            steps = [_random_crop(preprocessing, crop, settings["scale"]), flip, policy]
        case "trivialaugment":
            steps = [_random_crop(preprocessing, crop, **settings), flip, v2.TrivialAugmentWide()]
        case _:
            raise ValueError(f"no augmentation is called {name!r}")
    return compose(*steps, *tensor)


def _random_crop(preprocessing: Preprocessing, size: int, scale: float) -> nn.Module:
    interpolation = InterpolationMode(preprocessing.interpolation)
    crop: nn.Module = v2.RandomResizedCrop(size, scale=(scale, 1.0), interpolation=interpolation, antialias=True)
    return crop


def _caltech_steps(preprocessing: Preprocessing, scale: float, degrees: float, color_jitter: float) -> list[nn.Module]:
    """Return the steps of the Caltech-101 article; center-cropping after the rotation leaves fewer black corners."""
    return [
        _random_crop(preprocessing, preprocessing.resize, scale),
        v2.RandomRotation(degrees),
        v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter),
        v2.CenterCrop(preprocessing.crop),
    ]


def build_mixing(num_classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
    """Return the MixUp or CutMix transform of training batches; if both are on, each batch uses one at random.

    Args:
        num_classes: number of classes.
        mixup: alpha of MixUp's Beta(alpha, alpha) distribution of mixing weights (Zhang et al., arXiv:1710.09412); 0
            turns MixUp off.
        cutmix: alpha of CutMix's Beta(alpha, alpha) distribution of area fractions (Yun et al., arXiv:1905.04899); 0
            turns CutMix off.

    Returns:
        A module, or None if both are off. It takes float images (batch, channels, height, width) and int64 labels
        (batch,), and returns images of that shape and float targets (batch, num_classes). It draws from torch's
        generator.
    """
    alphas = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    transforms = [transform(alpha=alpha, num_classes=num_classes) for transform, alpha in alphas if alpha > 0]
    return v2.RandomChoice(transforms) if transforms else None
