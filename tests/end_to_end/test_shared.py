"""The same on real photographs and real ImageNet weights, with all their oddities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from headstart.data.build import open_images, open_source
from headstart.data.image_io import read_image
from headstart.models.backbone import build_backbone
from tests.helpers.runs import SMALL, Train, composed

pytestmark = pytest.mark.usefixtures("shared")
NO_BAR = SMALL[1:3]  # real weights, and workers that decode


def weights(shared: Path, name: str) -> tuple[str, str]:
    return f"model={name}", f"model.weights={shared}/weights/{name}-imagenet.pth"


def test_the_published_split_of_the_vehicles(shared: Path) -> None:
    images = open_images(composed("data=emergency", f"data.root={shared}/data/emergency-vehicles").data)
    assert {name: len(samples) for name, samples in images.splits.items()} == {"train": 1481, "val": 165}
    assert images.class_names == ("non-emergency", "emergency")
    labels = [label for samples in images.splits.values() for label in samples.labels.tolist()]
    assert Counter(labels) == {0: 965, 1: 681}


def test_ants_and_bees_as_found(shared: Path) -> None:
    source = open_source("imagefolder", root=shared / "data" / "hymenoptera")
    assert {name: len(samples) for name, samples in source.splits.items()} == {"train": 245, "val": 153}
    assert source.class_names == ("ants", "bees")
    assert source.notes == []
    assert "train/ants/imageNotFound.gif" in source.splits["train"].names  # which torchvision leaves out


def test_pets_that_are_a_gif_and_a_transparent_png(shared: Path) -> None:
    source = open_source("pets", root=shared / "data" / "pets-3breeds")
    assert {name: len(samples) for name, samples in source.splits.items()} == {"train": 300, "test": 298}
    images = (shared / "data" / "pets-3breeds" / "oxford-iiit-pet" / "images").glob("*.jpg")
    odd = [path for path in images if not path.read_bytes().startswith(b"\xff\xd8")]
    assert len(odd) == 2
    assert {read_image(path).mode for path in odd} == {"RGB"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0"])
def test_real_weights_fit_and_come_with_their_preprocessing(name: str, shared: Path) -> None:
    backbone = build_backbone("torchvision", name, str(shared / "weights" / f"{name}-imagenet.pth"))
    assert (backbone.preprocessing.resize, backbone.preprocessing.crop) == (256, 224)


@pytest.mark.parametrize(
    ("name", "data", "metric", "least"),
    [
        ("mobilenet_v2", "imagefolder data.root={}/hymenoptera", "val/accuracy", 0.94),
        ("mobilenet_v2", "pets data.root={}/pets-3breeds", "test/accuracy", 0.92),
        ("mobilenet_v2", "emergency data.root={}/emergency-vehicles data.train_per_class=150", "val/accuracy", 0.88),
    ],
)
def test_a_frozen_network_learns_from_photographs(
    name: str, data: str, metric: str, least: float, shared: Path, train: Train
) -> None:
    """After two epochs; benchmarks/README.md has longer runs."""
    source = f"data={data.format(shared / 'data')}".split()
    metrics = train(*source, *weights(shared, name), "data.num_workers=null", "epochs=2", "lr=3e-3")
    assert metrics[metric] >= least
