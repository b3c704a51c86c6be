"""batch_size=auto: a size that is measured, bounded, written down and taken again; nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from headstart.training.classifier import TransferClassifier
from headstart.training.tuning import batch_size, tuner
from headstart.training.tuning.batch_size import LARGEST, LARGEST_ON_CPU, best_batch_size, candidate_sizes
from headstart.utils.errors import ConfigError
from tests.helpers.classifiers import classifier, quiet_trainer, same, unchanged
from tests.helpers.runs import FEW, SIZE, Train, interrupt_after, weights


def measure(model: TransferClassifier, train_images: int = 2000) -> batch_size.BatchSize:
    return best_batch_size(model, quiet_trainer(), image_size=16, train_images=train_images)


@pytest.mark.parametrize("freeze", [False, "block1"])
def test_model_and_random_states_are_as_they_were(freeze: bool | str) -> None:
    model = classifier(freeze=freeze)
    with unchanged(model):
        result = measure(model)
    assert result.size in result.speeds
    assert f"{result.size} (" in str(result)


def test_sizes_leave_twenty_steps_an_epoch() -> None:
    sizes = {100_000: [8, 16, 32, 64, 128, 256, 512, 1024], 1481: [8, 16, 32, 64], 160: [8]}
    sizes |= {100: [8], 8: [8], 7: [4], 3: [2]}  # fewer steps, but no smaller batch
    assert {images: candidate_sizes(images, LARGEST) for images in sizes} == sizes
    assert candidate_sizes(100_000, LARGEST_ON_CPU) == [8, 16, 32]


CLOCK = [0.0]  # seconds: those of the machine that the tests run on are anybody's guess


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in `Waits` and `Large` alone."""
    monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: CLOCK[-1]))


class Waits(nn.Module):
    """Takes as long for a batch up to `together` as for one image, as a GPU does; then for each so many again."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.together = together

    def forward(self, images: Tensor) -> Tensor:
        CLOCK.append(CLOCK[-1] + -(-len(images) // self.together))
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("together", "size", "reason"), [(16, 16, "32 are no faster"), (64, 32, "the largest that is tried on cpu")]
)
@pytest.mark.usefixtures("clock")
def test_it_stops_where_larger_batches_are_no_faster_or_not_tried(together: int, size: int, reason: str) -> None:
    result = measure(TransferClassifier(Waits(together), nn.Linear(3, 2), ("a", "b")), 10_000)
    assert (result.size, result.reason) == (size, reason)
    assert list(result.speeds) == [8, 16, 32]


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
    result = measure(TransferClassifier(Large(20), nn.Linear(3, 2), ("a", "b")), 10_000)
    assert (result.size, result.reason) == (16, "32 would take too much memory")
    with pytest.raises(ConfigError, match=r"not even 8 images of 16 × 16 pixels fit .* Take smaller images"):
        measure(TransferClassifier(Large(4), nn.Linear(3, 2), ("a", "b")))


# --- whole runs ----------------------------------------------------------------------------------------------

OVERRIDES = ("batch_size=auto", "freeze=false", "epochs=2", "model=timm", "model.name=tiny_vgg", *SIZE)
OVERRIDES += ("data.train_per_class=32",)


def test_a_run_is_the_run_with_that_number(train: Train, tmp_path: Path) -> None:
    result = train(*OVERRIDES, folder=tmp_path / "auto")
    size = result["auto/batch_size"]
    assert size in (8, 16)
    assert "batch_size: auto\n" in (tmp_path / "auto" / "config.yaml").read_text()
    checkpoint = torch.load(tmp_path / "auto" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["batch_size"] == size
    assert json.loads((tmp_path / "auto" / "model" / "model.json").read_text())["batch_size"] == size
    given = train(*OVERRIDES, f"batch_size={size}", folder=tmp_path / "number")
    assert same(weights(tmp_path / "auto"), weights(tmp_path / "number"))
    assert result["val/loss"] == given["val/loss"]


def test_a_resumed_run_takes_the_size_of_its_checkpoint(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt_after(1, *OVERRIDES, "batch_size=16", folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    # 16 is what it was, whatever would be measured now; what takes a number may take another one.
    resumed = train(*OVERRIDES, f"ckpt_path={last}", folder=tmp_path / "resumed")
    assert resumed["auto/batch_size"] == 16
    assert "batch_size=auto" not in caplog.text
    assert train(*OVERRIDES, "batch_size=5", f"ckpt_path={last}", folder=tmp_path / "five")["epochs/run"] == 2


def test_features_need_no_search(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    metrics = train("batch_size=auto", "epochs=1")
    assert metrics["auto/batch_size"] == 32
    assert "batch_size: 32, for a head on cached features of 100 images" in caplog.text


def test_heads_on_features_of_many_images_have_larger_batches(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {1: 32, 6_400: 32, 6_401: 64, 35_000: 256, 1_000_000: 256}
    assert {images: tuner.head_batch_size(images) for images in sizes} == sizes
    monkeypatch.setattr(tuner, "STEPS_PER_EPOCH", 2)
    caplog.set_level("INFO")
    train("epochs=1", folder=tmp_path / "null")
    assert "batch_size: 64, for a head on cached features of 100 images" in caplog.text
    for overrides, size in ((("batch_size=16",), 16), (("freeze=false",), 32), (("features=off",), 32)):
        train("epochs=1", *overrides, *FEW, folder=tmp_path / overrides[0])
        checkpoint = torch.load(tmp_path / overrides[0] / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["batch_size"] == size
    resumed = f"ckpt_path={tmp_path / 'null' / 'checkpoints' / 'last.ckpt'}"
    train("epochs=2", resumed, folder=tmp_path / "resumed")
    # A schedule counts steps: it is that of the checkpoint only if the batches are, too.
    train("epochs=2", "scheduler=cosine", folder=tmp_path / "cosine")
    resumed = f"ckpt_path={tmp_path / 'cosine' / 'checkpoints' / 'last.ckpt'}"
    assert train("epochs=2", "scheduler=cosine", resumed, folder=tmp_path / "cosine again")["epochs/run"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_keeps_room_to_spare() -> None:
    model, drawn = classifier(), torch.cuda.get_rng_state()
    result = best_batch_size(model, quiet_trainer(accelerator="gpu", devices=1), image_size=64, train_images=100_000)
    assert 8 <= result.size <= 1024
    assert torch.equal(torch.cuda.get_rng_state(), drawn)
    assert next(model.parameters()).device.type == "cpu"
