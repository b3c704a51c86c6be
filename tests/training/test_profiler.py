"""What a run says of its speed: on runs that something is made to hold up, and of numbers alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples, file_samples
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.data.samplers import EpochSampler
from headstart.data.workers import default_workers
from headstart.models.backbone import Backbone
from headstart.models.unfreezing import Finetuning, Strategy
from headstart.training import profiler as training_profiler
from headstart.training.classifier import TransferClassifier
from headstart.training.profiler import FETCH, STAGES, StepClock, TrainingProfiler, describe_speed, larger_batch
from headstart.utils import files
from tests.helpers.classifiers import quiet_trainer
from tests.helpers.images import class_folders
from tests.helpers.runs import Train, composed, read_rows

SMALL = Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
PIXELS = evaluation_transform(SMALL)
THROUGH = ("data=imagefolder", "features=off", "logger=csv", "callbacks=none")


@pytest.fixture
def said(train: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `python train.py OVERRIDES` in this process; gives what its log says of its speed, however short it is."""
    monkeypatch.setattr(training_profiler, "SHORT_S", 0)

    def said(*overrides: str) -> str:
        caplog.set_level(logging.INFO)
        metrics = train(*THROUGH, *overrides)
        fractions = [metrics[f"time/{name}"] for name in ("waiting", "transfer", "compute")]
        assert min(fractions) >= 0
        assert sum(fractions) == pytest.approx(1, abs=1e-3)
        lines = [line for line in caplog.messages if line.startswith("speed: ")]
        assert len(lines) == 1
        return lines[0]

    return said


# --- runs that something holds up --------------------------------------------------------------------------------


HEAD_FIRST = ("features=auto", "finetune=head_then_full", "finetune.head_epochs=20", "epochs=21")


@pytest.mark.parametrize(("workers", "overrides"), [(0, ("epochs=2",)), (2, ("epochs=2",)), (0, HEAD_FIRST)])
def test_slow_decoding(workers: int, overrides: tuple[str, ...], said: Callable[..., str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (250, 250, 3), dtype=np.uint8)).save(path, format="JPEG2000")
    small = ("data.image_size=16", "data.resize=16", "batch_size=4", f"data.num_workers={workers}")
    line = said(f"data.root={tmp_path}/data", *small, *overrides)
    assert "of training waits for images, most of it decoding" in line
    assert "data.cache=decoded" in line


def test_a_slow_disk(said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "data", images=8)

    def late(path: Path) -> Path:
        time.sleep(0.04)
        return path

    monkeypatch.setattr(files, "regular_file", late)  # what is asked of each file before it is read
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
    return Sleeps(0.02, 0.0)


@register_model
def sleeps_an_image(**_: Any) -> nn.Module:
    return Sleeps(0.0, 0.01)


SIXTEEN = ("model=timm", "data.image_size=16", "data.resize=16", "freeze=false", "epochs=1")


def test_a_tiny_batch(said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "data", images=12)
    monkeypatch.setattr(training_profiler, "TINY_S", 0.1)  # ten times as long, for a machine that others use, too
    line = said(f"data.root={root}", *SIXTEEN, "model.name=sleeps_a_batch", "batch_size=1")
    assert "the batch is small: most of a step of " in line
    assert line.endswith(" or batch_size=auto")


def test_a_heavy_network(said: Callable[..., str], tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", images=32)
    line = said(f"data.root={root}", *SIXTEEN, "model.name=sleeps_an_image", "batch_size=16")
    assert "is the network computing" in line
    assert line.endswith("of training is the network computing: a smaller data.image_size")  # its weights are random


# --- the clock ---------------------------------------------------------------------------------------


def test_workers_add_up_what_images_take(tmp_path: Path) -> None:
    """Each in a row of its own, in memory that this process sees."""
    files = sorted(map(str, class_folders(tmp_path).rglob("*.jpg")))
    splits = {"train": file_samples(files, [0] * len(files), tmp_path)}
    data = ImageDataModule(splits, training=PIXELS, evaluation=PIXELS, batch_size=4, num_workers=2)
    loader = data.train_dataloader()
    assert len(list(loader)) == 5
    seconds = loader.dataset.loading_times.seconds  # type: ignore[attr-defined]
    assert seconds.shape == (2, 3)
    assert (seconds > 0).all()


def test_every_scalar_of_an_epoch(train: Train, tmp_path: Path) -> None:
    train("logger=csv", "epochs=3", "data.train_per_class=20")
    rows = [row for row in read_rows(tmp_path / "run" / "csv" / "metrics.csv") if row["time/waiting"]]
    assert len(rows) == 3
    for row in rows:
        assert sum(float(row[f"time/{name}"]) for name in ("waiting", "transfer", "compute")) == pytest.approx(1)
        assert float(row["time/epoch_s"]) > 160 / float(row["time/images_per_s"])  # which leaves validation out


def test_validation_is_in_no_stage_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches are moved, too, and may take long."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = StepClock(torch.device("cpu"))
    move = "[LightningDataModule]ImageDataModule.transfer_batch_to_device"
    clock.begin_epoch()
    for _ in range(2):
        for action, seconds in ((FETCH, 0.05), (move, 0.1), ("[Strategy]SingleDeviceStrategy.backward", 0.15)):
            with clock.profile(action):
                now += seconds
        clock.end("compute")
        now += 0.2  # of what Lightning does after the last callback; none where training ends
    for _ in range(5):
        with clock.profile(move):
            now += 0.1
    assert clock.seconds() == pytest.approx({"waiting": 0.1, "transfer": 0.2, "compute": 0.5})


def test_a_head_that_trained_on_features_does_not_count() -> None:
    """Its steps take next to no time, and would hide what those of the network take."""

    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            shape = (4, 12) if trainer.current_epoch < 5 else (4, 3, 2, 2)
            return iter([(torch.randn(shape), torch.tensor([0, 1, 1, 0]))] * 3)

    profiler, head_first = TrainingProfiler(), Finetuning(head_epochs=5)
    classifier = TransferClassifier(nn.Flatten(), nn.Linear(12, 2), "ab", freeze=False, finetuning=head_first)
    trainer = quiet_trainer(max_epochs=7, callbacks=[profiler], limit_val_batches=0)
    trainer.fit(classifier, Batches())
    assert (profiler.steps, profiler.images) == (2 * 3, 2 * 3 * 4)


READS_DECODED = ("data.cache=decoded", "reads and augments decoded images: a cheaper augment")


@pytest.mark.parametrize(("override", "what"), [READS_DECODED, ("features=auto", "waits for features")])
def test_a_slow_cache(override: str, what: str, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    draw = EpochSampler.draw

    def late(sampler: EpochSampler) -> tuple[Tensor, Tensor]:
        time.sleep(0.5)
        return draw(sampler)

    monkeypatch.setattr(EpochSampler, "draw", late)
    monkeypatch.setenv("HEADSTART_CORES", "2")  # as many workers as there are cores: more would not help
    assert said("data=digits", "data.train_per_class=3", "epochs=2", "data.num_workers=2", override).endswith(
        f"of training {what}"
    )


# --- the rules -------------------------------------------------------------------------------------------------------

FULL, FREEZE = ("freeze=false",), ("freeze=true", "features=off")
KEPT = "data.cache=decoded"
SMALLER, ONCE = "a smaller data.image_size", "features=auto (the backbone runs once)"


def timed(*seconds: float, device: str = "cuda", **what: Any) -> TrainingProfiler:
    profiler = TrainingProfiler()
    vars(profiler).update({"device": torch.device(device), "processes": 1, "steps": 660, "images": 21200} | what)
    profiler.seconds = dict(zip(STAGES, seconds, strict=True))
    return profiler


waited, computed = partial(timed, 71, 4, 25), partial(timed, 2, 1, 97)
DECODES, READS, TRANSFORMS, HANDS_OVER = (20, 240, 60), (240, 20, 60), (20, 60, 240), (2, 5, 9)


@pytest.mark.parametrize(
    ("profiler", "overrides", "expected"),
    [
        (waited(loading=DECODES), FULL, f"most of it decoding: {KEPT} (each is decoded once)"),
        (waited(loading=DECODES), (*FREEZE, KEPT), f"most of it decoding: {ONCE}"),
        (waited(loading=READS), FULL, f"from the disk: a copy on a local disk or {KEPT} (each is decoded once)"),
        (waited(loading=TRANSFORMS), (*FULL, KEPT), "71% of training waits for images, most of it transforming"),
        (waited(loading=HANDS_OVER), FULL, "for the worker processes that hand them over: data.num_workers=0"),
        (waited(loading=DECODES), (*FULL, KEPT, "data.num_workers=0"), f": data.num_workers={default_workers()}"),
        (timed(30, 50, 20), FULL, f"50% of training moves images to the device: {SMALLER}"),
        (computed(), FULL, f"97% of training is the network computing: freeze=true or {SMALLER}"),
        (computed(), (*FULL, "model=vit_b_16"), "97% of training is the network computing: freeze=true"),
        (computed(), ("finetune=full",), f"computing: finetune=none freeze=true or {SMALLER}"),
        (computed(), (*FREEZE, "trainer.precision=32-true"), f": trainer.precision=bf16-mixed, {ONCE} or {SMALLER}"),
        (computed(steps=66000), (*FULL, "batch_size=auto"), f"the network computing: freeze=true or {SMALLER}"),
        (computed(on_features=True), (), "97% of training is the head computing"),
        (computed(device="cpu"), (*FREEZE, "augment=flip"), f"the network computing: trainer=gpu, {ONCE} or {SMALLER}"),
        (computed(device="cpu"), (*FREEZE, "loss.mixup=0.2"), f"the network computing: trainer=gpu or {SMALLER}"),
        (computed(device="cpu"), (*FULL, "model.weights=null"), f"the network computing: trainer=gpu or {SMALLER}"),
        (computed(steps=19400), FULL, "small: most of a step of 5.0 ms is overhead: batch_size=64 or batch_size=auto"),
        (timed(0.3, 0.1, 0.6, images=212), FULL, "1.0 s of training are too short to gain much"),
    ],
)
def test_the_verdict(
    profiler: TrainingProfiler, overrides: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4,000 images, where there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = composed("trainer=gpu", *overrides)
    splits = {"train": Samples(np.zeros((4000, 64, 64, 3), np.uint8), np.zeros(4000, np.int64), [""] * 4000)}
    workers = config.data.num_workers
    data = ImageDataModule(splits, training=PIXELS, evaluation=PIXELS, batch_size=32, num_workers=workers)
    backbone = Backbone(nn.Identity(), 3, SMALL, {}, fixed_size="model=vit_b_16" in overrides)
    line = describe_speed(profiler, config, data, Strategy(backbone, config.freeze, Finetuning()))
    assert line.startswith("speed: 212 images/s; ")
    assert line.endswith(expected)


@pytest.mark.parametrize(
    ("batch_size", "step_s", "train_size", "expected"),
    [(32, 0.005, 4000, 64), (48, 0.009, 4000, 64), (1, 0.0001, 4000, 8), (32, 0.001, 400, 64), (32, 0.001, 100, None)],
)
def test_the_batch_that_is_proposed(batch_size: int, step_s: float, train_size: int, expected: int | None) -> None:
    assert larger_batch(batch_size, step_s, train_size) == expected
