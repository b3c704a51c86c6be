"""batch_size=auto: a size that is measured, bounded, written down and taken again; nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from headstart.training.classifier import TransferClassifier
from headstart.training.tuning import auto, batch_size
from headstart.training.tuning.batch_size import best_batch_size, kept_bytes, random_batch, sizes_for
from headstart.training.tuning.trial_steps import Rehearsal
from headstart.utils.errors import ConfigError
from tests.helpers.classifiers import CPU, classifier, random_states, same
from tests.helpers.runs import FEW, Train, interrupt_after, weights

Setup = Callable[..., Any]


def measure(model: TransferClassifier, train_images: int = 2000) -> batch_size.BatchSize:
    return best_batch_size(
        model, image_size=16, train_images=train_images, device=CPU, precision=Precision()
    )  # fmt: skip


@pytest.mark.parametrize("freeze", [False, "block1"])
def test_model_and_random_states_are_as_they_were(freeze: bool | str) -> None:
    model = classifier(freeze=freeze)
    state, modes = deepcopy(model.state_dict()), [module.training for module in model.modules()]
    drawn = random_states()
    found = measure(model)
    assert random_states() == drawn
    assert same(model.state_dict(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.size in found.speeds
    assert f"{found.size} (" in str(found)


def test_sizes_leave_twenty_steps_an_epoch() -> None:
    assert sizes_for(100_000) == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert sizes_for(1481) == [8, 16, 32, 64]
    assert sizes_for(160) == [8]
    assert sizes_for(100) == sizes_for(8) == [8]  # fewer steps, but no smaller batch
    assert sizes_for(7) == [4]
    assert sizes_for(3) == [2]


CLOCK = [0.0]  # seconds: those of the machine that the tests run on are anybody's guess


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in `Waits` and `Large` alone."""
    monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: CLOCK[-1]))


class Waits(nn.Module):
    """Takes as long for a batch up to `together` as for one image, as a GPU does; then for each so many anew."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.together = together

    def forward(self, images: Tensor) -> Tensor:
        CLOCK.append(CLOCK[-1] + -(-len(images) // self.together))
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize("together", [16, 64])
@pytest.mark.usefixtures("clock")
def test_it_stops_where_larger_batches_are_no_faster(together: int) -> None:
    model = TransferClassifier(Waits(together), nn.Linear(3, 2), ("a", "b"))
    found = measure(model, 10_000)
    assert found.size == together
    assert found.reason == f"{2 * together} are no faster"
    assert list(found.speeds) == [2**power for power in range(3, (2 * together).bit_length())]


class Large(nn.Module):
    """Runs out of memory with more than `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        CLOCK.append(CLOCK[-1] + 1)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean(dim=(2, 3))


@pytest.mark.usefixtures("clock")
def test_out_of_memory_is_not_the_end() -> None:
    found = measure(TransferClassifier(Large(40), nn.Linear(3, 2), ("a", "b")), 10_000)
    assert (found.size, found.reason) == (32, "64 would take too much memory")
    with pytest.raises(ConfigError, match=r"not even 8 images of 16 × 16 pixels fit .* Take smaller images"):
        measure(TransferClassifier(Large(4), nn.Linear(3, 2), ("a", "b")))


@pytest.mark.usefixtures("clock")
def test_a_machine_is_not_asked_for_memory_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its memory a quarter is for what a step keeps."""
    wide = nn.Sequential(Large(999), nn.Linear(3, 100_000))
    model = TransferClassifier(wide, nn.Linear(100_000, 2), ("a", "b"), freeze=False)
    rehearsal = Rehearsal(model, CPU, Precision(), lr=1e-3)
    needed = kept_bytes(rehearsal, random_batch(rehearsal, 2, 16)) / 2
    assert 400_000 <= needed < 500_000  # the hidden layer in float32, and not its weights
    monkeypatch.setattr(batch_size, "memory_bytes", lambda: 4 * 20 * needed)
    found = measure(model, 10_000)
    assert (found.size, found.reason) == (16, "32 would take too much memory")


# --- whole runs ----------------------------------------------------------------------------------------------

WORDS = ("batch_size=auto", "freeze=false", "epochs=2")
WORDS += ("data.train_per_class=32", "data.val_fraction=0.05", "data.test_fraction=0.05")


def test_a_run_is_the_run_with_that_number(train: Train, tmp_path: Path) -> None:
    found = train(*WORDS, folder=tmp_path / "auto")
    size = found["auto/batch_size"]
    assert size in (8, 16)
    assert "batch_size: auto\n" in (tmp_path / "auto" / "config.yaml").read_text()
    checkpoint = torch.load(tmp_path / "auto" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["batch_size"] == size
    assert json.loads((tmp_path / "auto" / "model" / "model.json").read_text())["batch_size"] == size
    given = train(*WORDS, f"batch_size={size}", folder=tmp_path / "number")
    assert same(weights(tmp_path / "auto"), weights(tmp_path / "number"))
    assert found["val/loss"] == given["val/loss"]


def test_a_resumed_run_takes_the_size_of_its_checkpoint(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt_after(1, *WORDS, "batch_size=16", folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    # 16 is what it was, whatever would be measured now; what takes a number may take another one.
    resumed = train(*WORDS, f"ckpt_path={last}", folder=tmp_path / "resumed")
    assert resumed["auto/batch_size"] == 16
    assert "batch_size=auto" not in caplog.text
    assert train(*WORDS, "batch_size=5", f"ckpt_path={last}", folder=tmp_path / "five")["epochs/run"] == 2


def test_features_need_no_search(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    metrics = train("batch_size=auto", "epochs=1")
    assert metrics["auto/batch_size"] == 32
    assert "batch_size: 32, for a head on cached features of 100 images" in caplog.text


def test_heads_on_features_of_many_images_have_larger_batches(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {1: 32, 6_400: 32, 6_401: 64, 35_000: 256, 1_000_000: 256}
    assert {images: auto.suitable_batch_size(images) for images in sizes} == sizes
    monkeypatch.setattr(auto, "STEPS", 2)
    caplog.set_level("INFO")
    train("epochs=1", folder=tmp_path / "null")
    assert "batch_size: 64, for a head on cached features of 100 images" in caplog.text
    for words, size in ((("batch_size=16",), 16), (("freeze=false",), 32), (("features=off",), 32)):
        train("epochs=1", *words, *FEW, folder=tmp_path / words[0])
        checkpoint = torch.load(tmp_path / words[0] / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["batch_size"] == size
    resumed = f"ckpt_path={tmp_path / 'null' / 'checkpoints' / 'last.ckpt'}"
    train("epochs=2", resumed, folder=tmp_path / "resumed")
    # A schedule counts steps: it is that of the checkpoint only if the batches are, too.
    train("epochs=2", "scheduler=cosine", folder=tmp_path / "cosine")
    resumed = f"ckpt_path={tmp_path / 'cosine' / 'checkpoints' / 'last.ckpt'}"
    assert train("epochs=2", "scheduler=cosine", resumed, folder=tmp_path / "cosine again")["epochs/run"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_keeps_room_to_spare() -> None:
    gpu = torch.device("cuda")
    model, drawn = classifier(), torch.cuda.get_rng_state()
    found = best_batch_size(model, image_size=64, train_images=100_000, device=gpu, precision=Precision())
    assert 8 <= found.size <= 1024
    assert torch.equal(torch.cuda.get_rng_state(), drawn)
    assert next(model.parameters()).device.type == "cpu"
