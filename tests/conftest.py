"""Small real images, and real runs over them: nothing is mocked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_digits

from headstart import config

# Examples import scikit-learn the first time: how long one takes says nothing.
settings.register_profile("headstart", deadline=None, max_examples=50)
settings.load_profile("headstart")

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
SHARED = ROOT.parent / "shared"
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200))


def photo(path: Path, label: int, *, size: tuple[int, int] = (40, 36), seed: int = 0) -> None:
    """Writes a noisy image whose colour tells its class."""
    rng = np.random.default_rng((label, seed))
    pixels = np.array(COLOURS[label % len(COLOURS)]) + rng.normal(0, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def class_folders(root: Path, classes: Sequence[str] = ("cat", "dog"), images: int = 10) -> Path:
    """Writes root/CLASS/N.jpg."""
    for label, name in enumerate(classes):
        for index in range(images):
            photo(root / name / f"{index}.jpg", label, seed=index)
    return root


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


def composed(*overrides: str) -> config.Config:
    """The checked configuration of a command line."""
    with initialize_config_dir(str(CONF)):
        return config.check(compose("train", list(overrides)))


# What keeps a run small: no network weights, tiny images, no worker processes, no bar, no pictures.
SMALL = ("model.weights=null", "trainer=cpu", "trainer.enable_progress_bar=false", "data.num_workers=0", "report=false")
# A torchvision network that learns from small images in no time, with BatchNorm and without a large head.
TINY_RESNET = ("model=resnet18", "data.image_size=32", "data.resize=32")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A feature cache of the tests' own, which they share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs `python train.py OVERRIDES` in this process and returns its metrics.json."""
    from headstart.train import run

    def train(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
        folder = folder or tmp_path / "run"
        run(composed(*SMALL, *overrides), folder)
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
        return metrics

    return train


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 10 images each, without splits."""
    return class_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def trained(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small network that tells cats from dogs by their colour, trained on cached features."""
    from headstart.train import run

    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("data=imagefolder", f"data.root={folders}", "data.test_fraction=0.3", "lr=1e-2", "epochs=8")
    run(composed(*SMALL, *TINY_RESNET, *words), folder)
    return folder


CLASSES = ("ant", "a <b>very long $name$ of a class, indeed", "zebra")


@pytest.fixture(scope="session")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits under noise: classes that a small network cannot wholly tell apart."""
    root, rng, digits = tmp_path_factory.mktemp("hard"), np.random.default_rng(0), load_digits()
    for label, name in enumerate(CLASSES):
        images = iter(digits.images[digits.target == (3, 8, 9)[label]])
        for split, count in (("train", 12 + 8 * label), ("val", 20), ("test", 15)):
            for index in range(count):
                pixels = next(images) * 14 + rng.normal(0, 70, (8, 8))
                path = root / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((40, 36)).save(path)
    return root


def report_words(root: Path, *more: str) -> list[str]:
    data = ("data=imagefolder", f"data.root={root}", "model.weights=default", "augment=flip")
    return [*SMALL, "report=true", *data, "lr=1e-2", "epochs=4", *more]


@pytest.fixture(scope="session")
def reported(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run with its report."""
    from headstart.train import run

    folder = tmp_path_factory.mktemp("reported") / "run"
    run(composed(*report_words(hard)), folder)
    return folder


@pytest.fixture(scope="session")
def other(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with other settings on the same data, without a report, its curves in a csv."""
    from headstart.train import run

    folder = tmp_path_factory.mktemp("other") / "run"
    run(composed(*report_words(hard, "report=false", "head=mlp", "logger=csv", "epochs=2")), folder)
    return folder


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs of two heads at three rates, and one that has not ended."""
    from headstart.train import run

    root = tmp_path_factory.mktemp("sweep")
    for number, (head, lr) in enumerate(product(("linear", "mlp"), (1e-3, 3e-3, 1e-2))):
        words = ("model.weights=default", "epochs=2", f"head={head}", f"lr={lr}")
        run(composed(*SMALL, *words), root / str(number))
    shutil.copytree(root / "5", root / "unfinished")
    (root / "unfinished" / "metrics.json").unlink()
    (root / "notes").mkdir()
    (root / "notes" / "config.yaml").write_text("other: program")
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights; CI must have them."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing, and CI must test on real images")
        pytest.skip("no ../shared here")
    return SHARED
