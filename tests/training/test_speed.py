"""What a run says of its speed: on runs that something is made to hold up, and of figures alone."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from PIL import Image
from safetensors.torch import load_file
from timm.models import register_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from headstart.data import image_io
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import file_samples
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.models.unfreezing import Finetuning
from headstart.training import bottleneck
from headstart.training.bottleneck import Circumstances, Measures, larger_batch, verdict
from headstart.training.classifier import TransferClassifier
from headstart.training.probe import fixed_share
from headstart.training.speed import FETCH, Speed, StepClock
from tests.helpers.images import class_folders
from tests.helpers.runs import Train

THROUGH = ("data=imagefolder", "features=off", "logger=csv", "callbacks=none")


@pytest.fixture
def said(train: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `python train.py OVERRIDES` in this process; gives what its log says of its speed, however short it is."""
    monkeypatch.setattr(bottleneck, "SHORT_S", 0)

    def said(*overrides: str) -> str:
        caplog.set_level(logging.INFO)
        metrics = train(*THROUGH, *overrides)
        shares = [metrics[f"time/{name}"] for name in ("waiting", "transfer", "compute")]
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        lines = [line for line in caplog.messages if line.startswith("speed: ")]
        assert len(lines) == 1
        return lines[0]

    return said


# --- runs that something holds up --------------------------------------------------------------------------------


HEAD_FIRST = ("features=auto", "finetune=head_then_full", "finetune.head_epochs=20", "epochs=21")


@pytest.mark.parametrize(("workers", "words"), [(0, ("epochs=2",)), (2, ("epochs=2",)), (0, HEAD_FIRST)])
def test_slow_decoding(workers: int, words: tuple[str, ...], said: Callable[..., str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (250, 250, 3), dtype=np.uint8)).save(path, format="JPEG2000")
    small = ("data.image_size=16", "data.resize=16", "batch_size=4", f"data.num_workers={workers}")
    line = said(f"data.root={tmp_path}/data", *small, *words)
    assert "of training waits for images, most of it decoding" in line
    assert "data.cache=decoded" in line


def test_a_slow_disk(said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "data", images=8)

    def late(path: Path) -> Path:
        time.sleep(0.04)
        return path

    monkeypatch.setattr(image_io, "regular", late)  # what is asked of each file before it is read
    line = said(f"data.root={root}", "data.image_size=16", "data.resize=16", "batch_size=4", "epochs=2")
    assert "of training waits for images, most of it reading from the disk: " in line
    assert "a copy on a local disk, data.cache=decoded" in line


class Sleeps(nn.Module):
    """A network that waits, for each batch or for each image, so that it does not matter what else the machine does."""

    def __init__(self, a_batch: float, an_image: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.a_batch, self.an_image = a_batch, an_image
        self.num_features, self.pretrained_cfg = 3, {"input_size": (3, 16, 16), "crop_pct": 1.0}

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.a_batch + self.an_image * len(images))
        features: Tensor = self.layer(images.mean(dim=(2, 3)))
        return features


@register_model
def sleeps_a_batch(**_: Any) -> nn.Module:
    return Sleeps(0.03, 0.0)


@register_model
def sleeps_an_image(**_: Any) -> nn.Module:
    return Sleeps(0.0, 0.01)


SIXTEEN = ("model=timm", "data.image_size=16", "data.resize=16", "freeze=false", "epochs=1")


def test_a_tiny_batch(said: Callable[..., str], tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", images=12)
    line = said(f"data.root={root}", *SIXTEEN, "model.name=sleeps_a_batch", "batch_size=1")
    assert "the batch is small: " in line
    assert " or batch_size=auto" in line


def test_a_heavy_network(said: Callable[..., str], tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", images=32)
    line = said(f"data.root={root}", *SIXTEEN, "model.name=sleeps_an_image", "batch_size=16")
    assert "the network: " in line
    assert line.endswith("of the time it computes: a smaller data.image_size")  # its weights are random


# --- the clock and the probe ---------------------------------------------------------------------------------------


def test_workers_add_up_what_images_take(tmp_path: Path) -> None:
    """Each in a row of its own, in memory that this process sees."""
    files = sorted(map(str, class_folders(tmp_path).rglob("*.jpg")))
    splits = {"train": file_samples(files, [0] * len(files), tmp_path)}
    transform = evaluation_transform(Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)))
    data = ImageDataModule(splits, training=transform, evaluation=transform, batch_size=4, num_workers=2)
    loader = data.train_dataloader()
    assert len(list(loader)) == 5
    seconds = loader.dataset.stopwatch.seconds  # type: ignore[attr-defined]
    assert seconds.shape == (2, 3)
    assert (seconds > 0).all()


def test_every_scalar_of_an_epoch(train: Train, tmp_path: Path) -> None:
    train("logger=csv", "epochs=3", "data.train_per_class=20")
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["time/waiting"]]
    assert len(rows) == 3
    for row in rows:
        assert sum(float(row[f"time/{name}"]) for name in ("waiting", "transfer", "compute")) == pytest.approx(1)
        assert float(row["time/epoch_s"]) > 160 / float(row["time/images_per_s"])  # which leaves validation out


def test_validation_is_in_no_stage_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches are moved, too, and may take long."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = StepClock()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(pl.LightningModule())
    clock.attend(trainer)
    move, backward = (
        "[LightningModule]LightningModule.transfer_batch_to_device",
        "[Strategy]SingleDeviceStrategy.backward",
    )
    clock.begin_epoch()
    for _ in range(2):
        for action, seconds in ((FETCH, 0.05), (move, 0.1), (backward, 0.15)):
            with clock.profile(action):
                now += seconds
        now += 0.2
        clock.end_step()
    for _ in range(5):
        with clock.profile(move):
            now += 0.1
    assert clock.seconds() == pytest.approx([0.1, 0.2, 0.3, 0.4])


class Noisy(nn.Module):
    """A network with everything that a forward pass changes; its own clock says how long it takes."""

    def __init__(self, fixed: float, growing: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(8 * 36, 2)
        self.fixed, self.growing, self.seconds = fixed, growing, 0.0

    def forward(self, images: Tensor) -> Tensor:
        self.seconds += self.fixed + self.growing * len(images)
        logits: Tensor = self.head(self.layers(images))
        return logits


SAMPLE = (torch.rand(1, 3, 8, 8), torch.tensor([1]))


def test_a_head_that_trained_on_features_does_not_count() -> None:
    """Its steps take next to no time, and would hide what those of the network take."""

    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            shape = (4, 12) if trainer.current_epoch < 5 else (4, 3, 2, 2)
            return iter([(torch.randn(shape), torch.tensor([0, 1, 1, 0]))] * 3)

    speed, head_first = Speed(), Finetuning(head_epochs=5)
    classifier = TransferClassifier(nn.Flatten(), nn.Linear(12, 2), "ab", freeze=False, finetuning=head_first)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=7, enable_checkpointing=False, callbacks=[speed], **quiet)
    trainer.fit(classifier, Batches())
    assert speed.measures is not None
    assert speed.measures.images == 2 * 3 * 4


@pytest.mark.parametrize(("fixed", "growing", "batch_size"), [(0.04, 0.0005, 4), (0.002, 0.01, 4), (0.03, 0.03, 1)])
def test_the_probe_finds_what_is_fixed(
    fixed: float, growing: float, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, step = Noisy(fixed, growing), fixed + growing * batch_size
    monkeypatch.setattr(time, "perf_counter", lambda: network.seconds)
    assert fixed_share(network, SAMPLE, batch_size, step, Precision()) == pytest.approx(fixed / step)


def test_the_probe_leaves_no_trace() -> None:
    network = Noisy(0, 0)
    network(SAMPLE[0].repeat(4, 1, 1, 1)).sum().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    parameters, state = list(network.parameters()), torch.get_rng_state()
    assert fixed_share(network, SAMPLE, 4, 0.001, Precision()) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert gradients
    assert all(torch.equal(gradients[name], p.grad) for name, p in network.named_parameters())  # type: ignore[arg-type]
    assert all(p is now and p.requires_grad for p, now in zip(parameters, network.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seconds", [100.0, 1e-3])
def test_a_network_that_cannot_be_tried_costs_no_run(seconds: float) -> None:
    """One that takes too long, and one that raises."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
    assert fixed_share(network, SAMPLE, 1, seconds, Precision()) == 0


def test_the_probe_gives_batchnorm_two_images() -> None:
    """However long a step takes, and only if there are two."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2), nn.BatchNorm1d(2))
    assert fixed_share(network, SAMPLE, 4, 0.15, Precision()) > 0
    assert fixed_share(network, SAMPLE, 1, 0.15, Precision()) == 0


def test_the_probe_compiles_nothing() -> None:
    """That takes longer than the epochs which it could make shorter."""
    network, counter = Noisy(0, 0), CompileCounter()
    network.compile(backend=counter)
    try:
        network(SAMPLE[0].repeat(4, 1, 1, 1)).sum().backward()
        compiled = counter.frame_count
        assert compiled > 0
        fixed_share(network, SAMPLE, 4, 0.001, Precision())
        assert counter.frame_count == compiled
    finally:
        torch.compiler.reset()


def test_a_run_that_was_probed_is_the_same(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights, BatchNorm's statistics and figures are those in memory when it ended: there is no checkpoint."""
    caplog.set_level(logging.INFO)
    words = ("features=off", "freeze=false", "head=mlp", "data.train_per_class=6", "batch_size=4", "epochs=2")
    monkeypatch.setattr(bottleneck, "SHORT_S", float("inf"))
    plain = train(*words, "callbacks.checkpoint=false", folder=tmp_path / "plain")
    monkeypatch.setattr(bottleneck, "SHORT_S", 0)
    probed = train(*words, "callbacks.checkpoint=false", folder=tmp_path / "probed")
    assert "too short" in caplog.text
    assert "the batch is small" in caplog.text or "the network: " in caplog.text
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "probed"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert {k: v for k, v in probed.items() if k[:5] != "time/"} == {k: v for k, v in plain.items() if k[:5] != "time/"}


# --- the rules -------------------------------------------------------------------------------------------------------

RUN = Circumstances(
    batch_size=32, train_size=4000, num_workers=4, most_workers=4, decoded=False, wants_decoded=False,
    tuned=False, on_cpu=False, gpu=True, half=None, cached=False, recomputed=False, pretrained=True,
    finetune=False, sized=True,
)  # fmt: skip
WAITED = Measures(images=21200, seconds=100, waiting=0.71, transfer=0.04, compute=0.25, loading=(20, 240, 60))
COMPUTED = Measures(images=21200, seconds=100, waiting=0.02, transfer=0.01, compute=0.97, loading=(2, 24, 6), fixed=0.1)


@pytest.mark.parametrize(
    ("measures", "run", "expected"),
    [
        (
            WAITED,
            RUN,
            "71% of training waits for images, most of it decoding: data.cache=decoded (each is decoded once)",
        ),
        (
            WAITED,
            replace(RUN, num_workers=2, wants_decoded=True),
            "71% of training waits for images, most of it decoding: data.num_workers=4",
        ),
        (
            WAITED,
            replace(RUN, recomputed=True, wants_decoded=True),
            "71% of training waits for images, most of it decoding: features=auto (the backbone runs once)",
        ),
        (
            replace(WAITED, loading=(240, 20, 60)),
            RUN,
            "71% of training waits for images, most of it reading from the disk: "
            "a copy on a local disk or data.cache=decoded (each is decoded once)",
        ),
        (
            replace(WAITED, loading=(20, 60, 240)),
            replace(RUN, wants_decoded=True),
            "71% of training waits for images, most of it transforming",
        ),
        (
            replace(WAITED, loading=(2, 5, 9)),
            RUN,
            "71% of training waits for images, most of it for the worker processes that hand them over: "
            "data.num_workers=0",
        ),
        (replace(WAITED, loading=None), replace(RUN, cached=True), "71% of training waits for features"),
        (
            replace(WAITED, loading=None),
            replace(RUN, decoded=True, wants_decoded=True),
            "71% of training reads and augments decoded images: a cheaper augment",
        ),
        (
            WAITED,
            replace(RUN, decoded=True, wants_decoded=True, num_workers=0),
            "71% of training reads and augments decoded images: a cheaper augment or data.num_workers=4",
        ),
        (
            replace(WAITED, waiting=0.3, transfer=0.5, compute=0.2),
            RUN,
            "50% of training moves images to the device: a smaller data.image_size",
        ),
        (
            replace(COMPUTED, fixed=0.64),
            RUN,
            "the batch is small: 64% of a step does not depend on it: batch_size=64 or batch_size=auto",
        ),
        (
            replace(COMPUTED, fixed=0.64),
            replace(RUN, tuned=True),
            "the batch is small: 64% of a step does not depend on it",
        ),
        (COMPUTED, RUN, "the network: 97% of the time it computes: freeze=true or a smaller data.image_size"),
        (
            COMPUTED,
            replace(RUN, half="bf16-mixed", pretrained=False),
            "the network: 97% of the time it computes: trainer.precision=bf16-mixed or a smaller data.image_size",
        ),
        (
            COMPUTED,
            replace(RUN, finetune=True, sized=False),
            "the network: 97% of the time it computes: finetune=none freeze=true",
        ),
        (
            replace(COMPUTED, fixed=None),
            replace(RUN, on_cpu=True, recomputed=True, pretrained=False),
            "the network: 97% of the time it computes: trainer=gpu, features=auto (the backbone runs once) "
            "or a smaller data.image_size",
        ),
        (COMPUTED, replace(RUN, cached=True), "the head: 97% of the time it computes"),
        (replace(WAITED, seconds=0.5, images=106), RUN, "0.5 s of training are too short to gain much"),
    ],
)
def test_the_verdict(measures: Measures, run: Circumstances, expected: str) -> None:
    assert verdict(measures, run) == f"speed: 212 images/s; {expected}"


@pytest.mark.parametrize(
    ("batch_size", "fixed", "train_size", "expected"),
    [(32, 0.64, 4000, 64), (1, 0.95, 4000, 8), (32, 1.0, 10**6, 256), (32, 0.9, 400, 64), (32, 0.9, 100, None)],
)
def test_the_batch_that_is_proposed(batch_size: int, fixed: float, train_size: int, expected: int | None) -> None:
    assert larger_batch(batch_size, fixed, train_size) == expected
