"""Images as the network sees them: the preprocessing of the weights, and reproducible augmentation."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import models

from headstart.data.augmentation import training_transform
from headstart.data.datamodule import ImageDataModule, ImageDataset
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Normalisation, Preprocessing, Transform, evaluation_transform
from headstart.data.samplers import EpochSampler
from headstart.models.backbone import build_backbone
from headstart.utils.errors import ConfigError
from tests.helpers.runs import choices, composed

SMALL = Preprocessing(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def samples(labels: Any, images: Any = None) -> Samples:
    """One image, a small photograph unless another is given, under each of some labels."""
    pixels = np.asarray(PHOTO.resize((50, 40)) if images is None else images)
    return Samples(np.stack([pixels] * len(labels)), np.asarray(labels), [str(index) for index in range(len(labels))])


def data_module(training: Samples, transform: Transform, **settings: Any) -> ImageDataModule:
    splits = {"train": training}
    return ImageDataModule(splits, training=transform, evaluation=transform, num_workers=0, **settings)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "squeezenet1_0"])
def test_the_evaluation_transform_is_that_of_the_weights(name: str) -> None:
    transform = evaluation_transform(build_backbone("torchvision", name, None).preprocessing)
    expected = next(iter(models.get_model_weights(name))).transforms()
    # To one rounding of float32: torchvision divides by 255, its v2 multiplies by 1/255.
    torch.testing.assert_close(transform(PHOTO), expected(PHOTO), rtol=0, atol=1e-6)


def test_the_config_overrides_the_preprocessing() -> None:
    p = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert (p.with_overrides(image_size=112).resize, p.with_overrides(image_size=112).crop) == (128, 112)
    assert (p.with_overrides(image_size=96, resize=96).resize, p.with_overrides(resize=300).crop) == (96, 224)
    with pytest.raises(ConfigError, match="data.resize=100 is smaller than the square of 224"):
        p.with_overrides(resize=100)
    assert p.with_overrides(mean=[0, 0, 0]).mean == (0, 0, 0)
    assert p.with_overrides() == p


@pytest.mark.parametrize("name", choices("augment"))
def test_augmentation_keeps_size_and_type_and_depends_on_the_seed_alone(name: str) -> None:
    transform = training_transform(SMALL, **asdict(composed(f"augment={name}", "augment.random_erasing=0.5").augment))
    dataset = ImageDataset(samples([0]), transform)
    first = torch.stack([dataset[0, seed][0] for seed in range(4)])
    assert (first.shape, first.dtype) == ((4, 3, 32, 32), torch.float32)
    again = torch.stack([dataset[0, seed][0] for seed in range(4)])
    assert torch.equal(first, again)
    assert name in ("none", "flip") or not torch.equal(first[0], first[1])


def test_workers_do_not_change_the_views() -> None:
    dataset = ImageDataset(samples(range(6)), training_transform(SMALL, "standard", scale=0.2))

    def views(workers: int, epoch: int = 0) -> torch.Tensor:
        sampler = EpochSampler(6, seed=1)
        sampler.set_epoch(epoch)
        return torch.cat([x for x, _ in DataLoader(dataset, 2, sampler=sampler, num_workers=workers)])

    assert torch.equal(views(0), views(2))
    assert not torch.equal(views(0), views(0, epoch=1))


def test_a_view_does_not_disturb_other_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ImageDataset(samples([0]), training_transform(SMALL, "standard", scale=0.2))[0, 7]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", choices("augment"))
@pytest.mark.parametrize("random_erasing", [0.0, 0.9])
def test_normalisation_on_the_device_gives_the_same_bits(name: str, random_erasing: float) -> None:
    augment = asdict(composed(f"augment={name}", f"augment.random_erasing={random_erasing}").augment)
    transform, images = training_transform(SMALL, **augment), samples([0] * 4)
    loader = data_module(images, transform, batch_size=4).train_dataloader()
    ((batch, _),) = loader
    expected = torch.stack([ImageDataset(images, transform)[key][0] for key in loader.sampler])
    assert batch.dtype == (torch.float32 if random_erasing else torch.uint8)
    assert torch.equal(batch if random_erasing else Normalisation(SMALL).double()(batch), expected)


@pytest.mark.parametrize("world", [1, 2])
def test_balanced_sampling_draws_all_classes_equally_often(world: int) -> None:
    labels = np.repeat([0, 1, 2], [900, 80, 20])
    data = data_module(
        samples(labels, np.zeros((8, 8, 3), np.uint8)), evaluation_transform(SMALL), batch_size=8, balanced=True
    )
    drawn = [pair for rank in range(world) for pair in shard_of(data, rank, world).training_sampler()]
    assert len(drawn) == 1000
    counts = np.bincount(labels[[index for index, _ in drawn]])
    assert np.abs(counts - 1000 / 3).max() < 60  # four standard deviations
    assert len({seed for _, seed in drawn}) == 1000  # an image that is drawn twice has two views


def shard_of(data: ImageDataModule, rank: int, world: int) -> ImageDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    return data


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_divide_the_images(world: int) -> None:
    data = data_module(samples(range(10)), evaluation_transform(SMALL), batch_size=4)
    shards = [[i for i, _ in shard_of(data, rank, world).training_sampler()] for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1  # as many steps for each
    assert {index for shard in shards for index in shard} == set(range(10))
    loaders = [shard_of(data, rank, world).evaluation_dataloader("train") for rank in range(world)]
    labels = [label for loader in loaders for _, batch in loader for label in batch.tolist()]
    assert sorted(labels) == list(range(10))  # none twice
