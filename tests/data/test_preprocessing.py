"""What the network sees: exactly what the weights expect, and reproducible augmentation."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import models

from headstart.data.augmentation import training_transform
from headstart.data.datamodule import ImageDataModule, ImageDataset
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Normalisation, Preprocessing, evaluation_transform
from headstart.data.samplers import EpochSampler, ShareSampler
from headstart.models.backbone import build_backbone
from headstart.utils.errors import ConfigError
from tests.helpers.runs import choices, composed

SMALL = Preprocessing(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "squeezenet1_0"])
def test_evaluation_is_the_weights_own_preprocessing(name: str) -> None:
    ours = evaluation_transform(build_backbone("torchvision", name, None).preprocessing)
    theirs = next(iter(models.get_model_weights(name))).transforms()
    # To one rounding of float32: torchvision divides by 255, its v2 multiplies by 1/255.
    torch.testing.assert_close(ours(PHOTO), theirs(PHOTO), rtol=0, atol=1e-6)


def test_the_data_may_say_otherwise() -> None:
    p = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert (p.changed(image_size=112).resize, p.changed(image_size=112).crop) == (128, 112)
    assert (p.changed(image_size=96, resize=96).resize, p.changed(resize=300).crop) == (96, 224)
    with pytest.raises(ConfigError, match="data.resize=100 is smaller than the square of 224"):
        p.changed(resize=100)
    assert p.changed(mean=[0, 0, 0]).mean == (0, 0, 0)
    assert p.changed() == p


@pytest.mark.parametrize("name", choices("augment"))
def test_augmentation_keeps_size_and_type_and_depends_on_the_seed_alone(name: str) -> None:
    transform = training_transform(SMALL, **asdict(composed(f"augment={name}", "augment.random_erasing=0.5").augment))
    photos = np.stack([np.asarray(PHOTO.resize((50, 40)))] * 6)
    dataset = ImageDataset(Samples(photos, np.arange(6), list("abcdef")), transform)
    first = torch.stack([dataset[0, seed][0] for seed in range(4)])
    assert (first.shape, first.dtype) == ((4, 3, 32, 32), torch.float32)
    again = torch.stack([dataset[0, seed][0] for seed in range(4)])
    assert torch.equal(first, again)
    assert name in ("none", "flip") or not torch.equal(first[0], first[1])


def test_workers_do_not_change_the_views() -> None:
    photos = np.stack([np.asarray(PHOTO.resize((50, 40)))] * 6)
    dataset = ImageDataset(
        Samples(photos, np.arange(6), list("abcdef")), training_transform(SMALL, "standard", scale=0.2)
    )

    def views(workers: int, epoch: int = 0) -> torch.Tensor:
        sampler = EpochSampler(6, seed=1)
        sampler.set_epoch(epoch)
        return torch.cat([x for x, _ in DataLoader(dataset, 2, sampler=sampler, num_workers=workers)])

    assert torch.equal(views(0), views(2))
    assert not torch.equal(views(0), views(0, epoch=1))


def test_a_view_does_not_disturb_other_random_numbers() -> None:
    transform = training_transform(SMALL, "standard", scale=0.2)
    photos = np.asarray(PHOTO.resize((50, 40)))[None]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ImageDataset(Samples(photos, np.zeros(1, dtype=np.int64), ["a"]), transform)[0, 7]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", choices("augment"))
@pytest.mark.parametrize("random_erasing", [0.0, 0.9])
def test_what_the_loader_leaves_to_the_device_gives_the_same_bits(name: str, random_erasing: float) -> None:
    augment = asdict(composed(f"augment={name}", f"augment.random_erasing={random_erasing}").augment)
    transform = training_transform(SMALL, **augment)
    pixels = np.stack([np.asarray(PHOTO.resize((50, 40)))] * 4)
    samples = Samples(pixels, np.zeros(4, dtype=np.int64), list("abcd"))
    data = ImageDataModule({"train": samples}, training=transform, evaluation=transform, batch_size=4, num_workers=0)
    loader = data.train_dataloader()
    ((batch, _),) = loader
    wanted = torch.stack([ImageDataset(samples, transform)[key][0] for key in loader.sampler])
    assert batch.dtype == (torch.float32 if random_erasing else torch.uint8)
    assert torch.equal(batch if random_erasing else Normalisation(SMALL).double()(batch), wanted)


@pytest.mark.parametrize("world", [1, 2])
def test_balanced_sampling_draws_all_classes_equally_often(world: int) -> None:
    labels = np.repeat([0, 1, 2], [900, 80, 20])
    pixels = np.zeros((1000, 8, 8, 3), dtype=np.uint8)
    transform = evaluation_transform(SMALL)
    data = ImageDataModule(
        {"train": Samples(pixels, labels, [""] * 1000)},
        training=transform,
        evaluation=transform,
        batch_size=8,
        balanced=True,
    )
    drawn = [pair for rank in range(world) for pair in data.training_sampler(rank, world)]
    assert len(drawn) == 1000
    counts = np.bincount(labels[[index for index, _ in drawn]])
    assert np.abs(counts - 1000 / 3).max() < 60  # four standard deviations
    assert len({seed for _, seed in drawn}) == 1000  # whatever is drawn twice has two views


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_images_out(world: int) -> None:
    training = [[i for i, _ in EpochSampler(10, 0, rank=rank, world=world)] for rank in range(world)]
    assert len({len(share) for share in training}) == 1  # as many steps for each
    assert {index for share in training for index in share} == set(range(10))
    evaluation = [list(ShareSampler(10, rank=rank, world=world)) for rank in range(world)]
    assert sorted(index for share in evaluation for index in share) == list(range(10))  # none twice
