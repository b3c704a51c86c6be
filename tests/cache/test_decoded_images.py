"""Decoded images: the same batches and weights as without them, bit for bit, and each image decoded once."""

from __future__ import annotations

import logging
import math
import pickle
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from headstart.cache.disk import IMAGES, cached_sets, clear
from headstart.cli.main import main
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import PackedRandomResizedCrop, PixelPacker
from tests.helpers.classifiers import same
from tests.helpers.commands import ended, script
from tests.helpers.decoded import decoded, module, samples_in
from tests.helpers.images import class_folders, photo
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import TINY_RESNET, Train, choices, composed, figures, tensors, weights


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Samples]:
    """Eleven files in train, of different sizes, and five in val; all of up to 64 × 64 pixels."""
    samples = {}
    for split, count in (("train", 11), ("val", 5)):
        paths = [tmp_path / split / f"{index}.png" for index in range(count)]
        for index, path in enumerate(paths):
            photo(path, index % 2, size=(40 + index, 60 - 2 * index), seed=len(split) * 100 + index)
        names = [f"{split}/{path.name}" for path in paths]
        samples[split] = Samples([str(path) for path in paths], np.arange(count) % 2, names)
    return samples


@pytest.fixture
def images(files: dict[str, Samples]) -> ImageDataModule:
    return module(files)


def cached_images(cache: Path) -> int:
    return sum(cached.rows for cached in cached_sets(cache, IMAGES))


def check_same(ours: ImageDataModule, theirs: ImageDataModule) -> None:
    """Two epochs of training, and validation."""
    for loader, epochs in (("train_dataloader", 2), ("val_dataloader", 1)):
        mine, files = getattr(ours, loader)(), getattr(theirs, loader)()
        for epoch in range(epochs):
            if epochs > 1:
                mine.sampler.set_epoch(epoch)
                files.sampler.set_epoch(epoch)
            for (images_a, labels_a), (images_b, labels_b) in zip(mine, files, strict=True):
                assert images_a.dtype == images_b.dtype
                assert torch.equal(images_a, images_b)
                assert torch.equal(labels_a, labels_b)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", choices("augment"))
def test_batches_are_bit_for_bit_those_of_files(name: str, workers: int, files: dict[str, Samples]) -> None:
    settings = asdict(composed(f"augment={name}").augment)
    images = module(files, workers=workers, **settings)
    check_same(decoded(images), module(files, **settings))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", ["flip", "standard"])
def test_erased_batches_are_those_of_files(name: str, files: dict[str, Samples]) -> None:
    """What is erased has the mean colour, so such images are normalised before."""
    images = module(files, **asdict(composed(f"augment={name}", "augment.random_erasing=0.9").augment))
    pixels, _ = next(iter(images.train_dataloader()))
    assert (pixels == 0).flatten(1).any(dim=1).float().mean() > 0.5
    check_same(decoded(images), images)


@pytest.mark.usefixtures("own_cache")
def test_processes_have_the_shares_that_they_have_of_files(images: ImageDataModule) -> None:
    ours = decoded(images)
    for rank in range(2):
        images.trainer = ours.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        check_same(ours, images)


def smooth(path: Path, size: tuple[int, int], seed: int) -> str:
    """A photograph's colours: each part of it is another one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("size", [(150, 100), (100, 400), (300, 260)])
@pytest.mark.parametrize("name", ["standard", "caltech"])
def test_parts_of_images_beyond_the_budget_are_nearly_those_of_files(
    tmp_path: Path, size: tuple[int, int], name: str
) -> None:
    """They are the same parts, resampled twice; and what is evaluated is the same at any size."""
    paths = [smooth(tmp_path / f"{index}.png", size, index) for index in range(8)]
    samples = {split: Samples(paths, np.arange(8) % 2, paths) for split in ("train", "val")}
    settings = asdict(composed(f"augment={name}").augment)
    files = module(samples, **settings)
    ours = decoded(files)
    for (mine, _), (theirs, _) in zip(ours.val_dataloader(), files.val_dataloader(), strict=True):
        assert torch.equal(mine, theirs)
    given, expected = (torch.cat([pixels for pixels, _ in data.train_dataloader()]).float() for data in (ours, files))
    assert 0 < (given - expected).abs().mean() < 1  # of 255 levels
    flipped = module(samples, "flip")
    check_same(decoded(flipped), flipped)


@pytest.mark.parametrize("size", [(1, 1), (200, 200), (20_000, 2), (1, 5000)])
def test_parts_have_a_pixel_at_least(size: tuple[int, int]) -> None:
    pack, part = PixelPacker(32**2), PackedRandomResizedCrop(v2.RandomResizedCrop(16, scale=(0.08, 1.0)))
    image = pack.unpack(pack(Image.new("RGB", size, (10, 20, 30))).numpy())
    for _ in range(20):
        assert np.array_equal(part(image), np.full((16, 16, 3), (10, 20, 30)))


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 2000).map(lambda side: side**2))
@example(10**6, 2, 448**2)
@example(1, 10**6, 448**2)
@example(1000, 1000, 448**2)
def test_images_are_packed_in_their_proportions_within_the_budget(width: int, height: int, budget: int) -> None:
    wide, high = PixelPacker(budget).packed_size(width, height)
    assert min(wide, high) >= 1
    assert wide * high <= budget
    if width * height <= budget:
        assert (wide, high) == (width, height)
    else:
        exactly = [length * math.sqrt(budget / (width * height)) for length in (width, height)]
        if min(exactly) >= 1:  # a line has a pixel across, however long it is
            assert [wide, high] == pytest.approx([length - 0.5 for length in exactly], abs=0.5 + 1e-6)


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (9, 9), (40, 30), (5000, 1)])
def test_what_is_packed_is_unpacked(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pack, image = PixelPacker(81), Image.fromarray(pixels)
    row = pack(image)
    assert (row.shape, row.dtype) == ((pack.row_bytes,), torch.uint8)
    packed_size = pack.packed_size(*size)
    expected = image if packed_size == size else image.resize(packed_size, Image.Resampling.LANCZOS)
    unpacked = pack.unpack(row.numpy())
    assert np.array_equal(unpacked, expected)
    assert unpacked.info["size"] == size


def test_a_process_that_is_not_forked_maps_the_rows_for_itself(images: ImageDataModule, own_cache: Path) -> None:
    loader = decoded(images).val_dataloader()
    pickled = pickle.dumps(loader.dataset.read)  # type: ignore[attr-defined]
    assert len(pickled) < sum(cached.size for cached in cached_sets(own_cache, IMAGES)) / 2
    read = pickle.loads(pickled)
    assert all(np.array_equal(read(index), loader.dataset.read(index)) for index in range(5))  # type: ignore[attr-defined]


def test_a_last_batch_of_one_image_is_left_out_of_training_alone(images: ImageDataModule) -> None:
    images.batch_size = 5
    assert [len(labels) for _, labels in decoded(images).train_dataloader()] == [5, 5]
    assert [len(labels) for _, labels in decoded(images).evaluation_dataloader("train")] == [3, 3, 3, 2]


def check_same_runs(train: Train, tmp_path: Path, *overrides: str) -> None:
    plain = train(*overrides, folder=tmp_path / "plain")
    cached = train(*overrides, "data.cache=decoded", folder=tmp_path / "cached")
    assert figures(plain) == figures(cached)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "cached"))


@pytest.mark.parametrize("augment", ["none", "standard", "randaugment"])
def test_a_run_has_the_same_weights_and_figures(
    augment: str, train: Train, folders: Path, tmp_path: Path, own_cache: Path
) -> None:
    overrides = (*TINY_RESNET, "freeze=false", "epochs=1", "data=imagefolder", f"data.root={folders}")
    check_same_runs(train, tmp_path, *overrides, f"augment={augment}")
    assert cached_images(own_cache) > 0


def test_a_run_on_arrays_with_mixing_has_the_same_weights(train: Train, tmp_path: Path, own_cache: Path) -> None:
    overrides = (*TINY_RESNET, "freeze=false", "epochs=2", "data=digits", "data.image_size=16", "data.resize=16")
    check_same_runs(train, tmp_path, *overrides, "augment=standard", "loss.mixup=0.2", "loss.cutmix=1")
    assert cached_images(own_cache) > 0


@pytest.mark.usefixtures("own_cache")
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(train: Train, folders: Path, tmp_path: Path) -> None:
    data = (*TINY_RESNET, "data=imagefolder", f"data.root={folders}", "data.cache=decoded", "data.num_workers=2")
    overrides = (*data, "freeze=false", "augment=standard", "callbacks.early_stopping=null", "monitor=val/loss")
    train(*overrides, "epochs=3", folder=tmp_path / "whole")
    train(*overrides, "epochs=2", folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    train(*overrides, "epochs=3", f"ckpt_path={last}", folder=tmp_path / "resumed")
    train(*overrides, "epochs=3", f"ckpt_path={last}", "data.cache=none", folder=tmp_path / "from_files")
    whole, *others = (tensors(tmp_path / name) for name in ("whole", "resumed", "from_files"))
    assert all(same(whole, other) for other in others)


@pytest.mark.usefixtures("own_cache")
def test_a_report_and_an_evaluation_follow(train: Train, folders: Path, tmp_path: Path) -> None:
    overrides = (*TINY_RESNET, "freeze=false", "epochs=1", "data=imagefolder", f"data.root={folders}", "report=true")
    train(*overrides, "data.cache=decoded", "augment=flip", folder=tmp_path / "run")
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_each_image_is_decoded_once(images: ImageDataModule, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(images)
    assert cached_images(own_cache) == 16
    whole = [x.numpy() for x, _ in decoded(images).evaluation_dataloader("train")]
    for path in images.splits["train"].images:  # other names and another split: the same content
        shutil.move(path, f"{path}.moved")
    train, val = images.splits["train"], images.splits["val"]
    moved = Samples([f"{path}.moved" for path in train.images], train.labels, train.names)
    monkeypatch.setattr(Image, "open", None)  # nothing is decoded from now on
    again = decoded(module({"train": val, "val": moved}))
    assert cached_images(own_cache) == 16
    assert all(
        np.array_equal(a, b.numpy()) for a, (b, _) in zip(whole, again.evaluation_dataloader("val"), strict=True)
    )


def test_a_changed_image_is_decoded_again(images: ImageDataModule, own_cache: Path) -> None:
    decoded(images)
    photo(Path(images.splits["val"].images[2]), 1, size=(50, 50), seed=77)
    for ours, theirs in zip(decoded(images).val_dataloader(), images.val_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
    assert cached_images(own_cache) == 17


def test_whole_images_are_cached_of_training_alone(files: dict[str, Samples], own_cache: Path) -> None:
    decoded(module(files, "standard", scale=0.35))
    assert sorted(cached.rows for cached in cached_sets(own_cache, IMAGES)) == [11, 16]
    decoded(module(files, "caltech", scale=0.35, degrees=15, color_jitter=0.1))  # other parts of them, of another size
    decoded(module(files, "flip"))
    assert sorted(cached.rows for cached in cached_sets(own_cache, IMAGES)) == [11, 11, 16]


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("data.cache_gb=1e-5", "more than data.cache_gb=1e-05: they are read again in every epoch"),
        ("trainer.limit_val_batches=1", "for runs that see all images (trainer.limit_*_batches): they are read again"),
    ],
)
def test_images_that_are_not_cached_are_read_as_before(
    override: str, why: str, train: Train, folders: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = (*TINY_RESNET, "freeze=false", "epochs=1", "data=imagefolder", f"data.root={folders}")
    with caplog.at_level(logging.WARNING):
        metrics = train(*overrides, "data.cache=decoded", override)
    assert why in caplog.text
    assert metrics["epochs/run"] == 1
    assert cached_images(own_cache) == 0


def test_what_was_not_used_for_longest_makes_room(images: ImageDataModule, own_cache: Path) -> None:
    decoded(images)
    size = sum(cached.size for cached in cached_sets(own_cache, IMAGES))
    val = images.splits["val"]
    for number, path in enumerate(val.images):
        photo(Path(path), number, size=(50, 50), seed=number)
    decoded(module({"train": val, "val": val}), max_gb=1.2 * size / 1e9)
    assert cached_images(own_cache) == 5


DECODE = """
import sys
from pathlib import Path
from tests.helpers.decoded import decoded, module, samples_in
decoded(module({"train": samples_in(Path(sys.argv[1]))}))
"""


def test_processes_share_the_work_and_one_that_is_killed_loses_little(own_cache: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos", images=150)
    assert ended(script(DECODE, root, environment=killed_at("after rows", 2))).returncode == -signal.SIGKILL
    before = cached_images(own_cache)
    assert 0 < before < 300
    assert [run.returncode for run in map(ended, [script(DECODE, root), script(DECODE, root)])] == [0, 0]
    assert cached_images(own_cache) == 300  # none twice, those of the first process too
    batches = decoded(module({"train": samples_in(root)})).evaluation_dataloader("train")
    files = module({"train": samples_in(root)}).evaluation_dataloader("train")
    assert all(torch.equal(ours, theirs) for (ours, _), (theirs, _) in zip(batches, files, strict=True))


def test_the_command_lists_and_clears_it(
    files: dict[str, Samples], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded(module(files, "standard", scale=0.35))
    main(["cache"])
    printed = capsys.readouterr().out
    assert "decoded images: resized to 1,024 pixels  16 images" in printed
    assert "decoded images: whole, up to 4,096 pixels  11 images" in printed
    assert "27 images" in printed
    freed, in_use = clear(own_cache)
    assert (freed > 0, in_use, cached_images(own_cache)) == (True, 0, 0)
