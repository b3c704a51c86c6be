"""What tests share: settings, the fork server, and finished runs to read. Nothing is mocked.

What takes long to import is imported in fixtures: the process that only hands tests out would wait for it, too.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.helpers.commands import ForkServer
from tests.helpers.images import CLASSES, class_folders
from tests.helpers.session import Once, once

if TYPE_CHECKING:
    from tests.helpers.runs import Train

# Examples import scikit-learn the first time: how long one takes says nothing.
settings.register_profile("headstart", deadline=None, max_examples=50)
settings.load_profile("headstart")

SHARED = Path(__file__).parent.parent.parent / "shared"
SERVER = pytest.StashKey[ForkServer]()
modules_kept = 0  # how many were imported when they were last left out of garbage collections


def pytest_configure(config: pytest.Config) -> None:
    """Starts the fork server, one for all processes that run tests."""
    if not hasattr(config, "workerinput"):
        config.stash[SERVER] = ForkServer(eager=bool(config.getoption("numprocesses", None)))


def pytest_runtest_setup() -> None:
    """Leaves what was imported out of every garbage collection, as train.py does: a run begins with one.

    Much is imported by the first tests that need it, and 100,000 objects more make every run a fifth slower.
    """
    global modules_kept
    if len(sys.modules) > modules_kept + 100:
        gc.collect()
        gc.freeze()
        modules_kept = len(sys.modules)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the fork server."""
    gc.unfreeze()  # libraries look for what is left at the end
    if server := config.stash.get(SERVER, None):
        server.close()


@pytest.fixture(scope="session", autouse=True)
def _set_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A feature cache of the tests' own; and the tiny networks, which are there for all of them."""
    import tests.helpers.networks  # noqa: F401 (registers them)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs `python train.py OVERRIDES` in this process and returns its metrics.json; of digits it takes few."""
    from headstart.train import run
    from tests.helpers.runs import composed, read_metrics, small

    def train(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
        folder = folder or tmp_path / "run"
        run(composed(*small(*overrides)), folder)
        return read_metrics(folder)

    return train


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- made once in a session: a test that changes one copies it ------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network."""
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    # urllib caches its first opener, with its proxies: other tests need their own, before this one and after it.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder once in a session; see `session.once`."""
    return partial(once, tmp_path_factory)


@pytest.fixture(scope="session")
def folders(made_once: Once) -> Path:
    """Two classes with 10 images each, without splits."""
    return made_once("folders", class_folders)


def run_once(made_once: Once, name: str, overrides: Sequence[str]) -> Path:
    from headstart.train import run
    from tests.helpers.runs import composed

    return made_once(f"{name}/run", lambda folder: run(composed(*overrides), folder))


@pytest.fixture(scope="session")
def trained(folders: Path, made_once: Once) -> Path:
    """The run folder of a small network that tells cats from dogs by their colour, trained on cached features."""
    from tests.helpers.runs import RESNET18, SMALL

    data = ("data=imagefolder", f"data.root={folders}", "data.test_fraction=0.3")
    return run_once(made_once, "trained", [*SMALL, *RESNET18, *data, "lr=1e-2", "epochs=8"])


@pytest.fixture(scope="session")
def finished(made_once: Once) -> Path:
    """The run folder of a network with BatchNorm, trained as a whole for three epochs."""
    from tests.helpers.runs import small

    return run_once(made_once, "finished", small("epochs=3", "freeze=false", "lr=3e-3"))


@pytest.fixture(scope="session")
def hard(made_once: Once) -> Path:
    """Handwritten digits under noise: classes that a small network cannot wholly tell apart."""
    return made_once("hard", noisy_digits)


def noisy_digits(root: Path) -> None:
    """Writes images of 40 × 36 pixels for train, val and test, those of `CLASSES`."""
    from sklearn.datasets import load_digits

    rng, digits = np.random.default_rng(0), load_digits()
    for label, name in enumerate(CLASSES):
        images = iter(digits.images[digits.target == (3, 8, 9)[label]])
        for split, count in (("train", 12 + 8 * label), ("val", 20), ("test", 15)):
            for index in range(count):
                pixels = next(images) * 14 + rng.normal(0, 70, (8, 8))
                path = root / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((40, 36)).save(path)


@pytest.fixture(scope="session")
def reported(hard: Path, made_once: Once) -> Path:
    """The run folder of a run with its report."""
    from tests.helpers.runs import report_words

    return run_once(made_once, "reported", report_words(hard))


@pytest.fixture(scope="session")
def other(hard: Path, made_once: Once) -> Path:
    """A run with other settings on the same data, without a report, its curves in a csv."""
    from tests.helpers.runs import report_words

    return run_once(made_once, "other", report_words(hard, "report=false", "head=mlp", "logger=csv", "epochs=2"))


@pytest.fixture(scope="session")
def sweep(made_once: Once) -> Path:
    """Six runs of two heads at three rates, and one that has not ended."""
    return made_once("sweep", six_runs)


def six_runs(root: Path) -> None:
    """Runs two heads at three rates; copies one without its figures, and adds another program's folder."""
    from headstart.train import run
    from tests.helpers.runs import SMALL, composed

    for number, (head, lr) in enumerate(product(("linear", "mlp"), (1e-3, 3e-3, 1e-2))):
        overrides = ("model.weights=default", "epochs=2", f"head={head}", f"lr={lr}")
        run(composed(*SMALL, *overrides), root / str(number))
    shutil.copytree(root / "5", root / "unfinished")
    (root / "unfinished" / "metrics.json").unlink()
    (root / "notes").mkdir()
    (root / "notes" / "config.yaml").write_text("other: program")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights; CI must have them."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing, and CI must test on real images")
        pytest.skip("no ../shared here")
    return SHARED
