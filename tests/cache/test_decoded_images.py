"""Decoded images: the same figures as without them, each image decoded once."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from headstart.cache.disk import IMAGES, cached_sets, clear
from headstart.cli.main import main
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from tests.helpers.commands import ended, script
from tests.helpers.decoded import decoded, module, samples_in
from tests.helpers.images import class_folders, photo
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import TINY_RESNET, Train


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> ImageDataModule:
    """Eleven files in train, of different sizes, and five in val."""
    samples = {}
    for split, count in (("train", 11), ("val", 5)):
        paths = [tmp_path / split / f"{index}.png" for index in range(count)]
        for index, path in enumerate(paths):
            photo(path, index % 2, size=(40 + index, 60 - 2 * index), seed=len(split) * 100 + index)
        names = [f"{split}/{path.name}" for path in paths]
        samples[split] = Samples([str(path) for path in paths], np.arange(count) % 2, names)
    return module(samples)


def kept(cache: Path) -> int:
    return sum(found.rows for found in cached_sets(cache, IMAGES))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_batches_are_bit_for_bit_those_of_files(images: ImageDataModule, loader: str) -> None:
    ours, theirs = getattr(decoded(images), loader)(), getattr(images, loader)()
    assert len(ours) == len(theirs)
    for epoch in range(2):
        if loader == "train_dataloader":
            ours.sampler.set_epoch(epoch)
            theirs.sampler.set_epoch(epoch)
        for (images_a, labels_a), (images_b, labels_b) in zip(ours, theirs, strict=True):
            assert torch.equal(images_a, images_b)
            assert torch.equal(labels_a, labels_b)


@pytest.mark.usefixtures("own_cache")
def test_processes_have_the_shares_that_they_have_of_files(images: ImageDataModule) -> None:
    ours = decoded(images)
    for rank in range(2):
        images.__dict__["_share"] = ours.__dict__["_share"] = lambda rank=rank: (rank, 2)
        for loader in ("train_dataloader", "val_dataloader"):
            mine, files = getattr(ours, loader)(), getattr(images, loader)()
            assert [len(labels) for _, labels in mine] == [len(labels) for _, labels in files]
            assert all(torch.equal(a, b) for (a, _), (b, _) in zip(mine, files, strict=True))


@pytest.mark.usefixtures("own_cache")
def test_batches_of_one_image_have_their_own_size(images: ImageDataModule) -> None:
    images.batch_size = 1
    found = decoded(images, name="standard", scale=0.35)
    assert all(len(labels) == 1 for _, labels in found.train_dataloader())


def test_a_last_batch_of_one_image_is_left_out_of_training_alone(images: ImageDataModule) -> None:
    images.batch_size = 5
    assert [len(labels) for _, labels in decoded(images).train_dataloader()] == [5, 5]
    assert [len(labels) for _, labels in decoded(images).evaluation_dataloader("train")] == [3, 3, 3, 2]


@pytest.mark.parametrize("words", [(), ("data=digits", "data.image_size=16", "data.resize=16", "epochs=1")])
def test_a_run_has_the_same_weights_and_figures(
    train: Train, folders: Path, tmp_path: Path, own_cache: Path, words: tuple[str, ...]
) -> None:
    words = words or ("data=imagefolder", f"data.root={folders}")
    words = (*TINY_RESNET, "freeze=false", "epochs=2", *words)
    plain = train(*words, folder=tmp_path / "plain")
    cached = train(*words, "data.cache=decoded", folder=tmp_path / "cached")
    assert kept(own_cache) > 0
    assert {k: v for k, v in plain.items() if "time/" not in k} == {k: v for k, v in cached.items() if "time/" not in k}
    theirs, ours = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "cached"))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.usefixtures("own_cache")
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(train: Train, folders: Path, tmp_path: Path) -> None:
    words = (*TINY_RESNET, "freeze=false", "data=imagefolder", f"data.root={folders}", "data.cache=decoded")
    words = (*words, "augment=standard", "callbacks.early_stopping=null", "monitor=val/loss")
    train(*words, "epochs=3", folder=tmp_path / "whole")
    train(*words, "epochs=2", folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    train(*words, "epochs=3", f"ckpt_path={last}", folder=tmp_path / "resumed")
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.usefixtures("own_cache")
def test_a_report_and_an_evaluation_follow(train: Train, folders: Path, tmp_path: Path) -> None:
    words = (*TINY_RESNET, "freeze=false", "epochs=1", "data=imagefolder", f"data.root={folders}", "report=true")
    train(*words, "data.cache=decoded", "augment=flip", folder=tmp_path / "run")
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_each_image_is_decoded_once(images: ImageDataModule, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(images)
    assert kept(own_cache) == 16
    whole = [x.numpy() for x, _ in decoded(images).evaluation_dataloader("train")]
    for path in images.splits["train"].images:  # other names and another split: the same content
        shutil.move(path, f"{path}.moved")
    train, val = images.splits["train"], images.splits["val"]
    moved = Samples([f"{path}.moved" for path in train.images], train.labels, train.names)
    monkeypatch.setattr(Image, "open", None)  # nothing is decoded from now on
    again = decoded(module({"train": val, "val": moved}))
    assert kept(own_cache) == 16
    assert all(
        np.array_equal(a, b.numpy()) for a, (b, _) in zip(whole, again.evaluation_dataloader("val"), strict=True)
    )


def test_a_changed_image_is_decoded_again(images: ImageDataModule, own_cache: Path) -> None:
    decoded(images)
    photo(Path(images.splits["val"].images[2]), 1, size=(50, 50), seed=77)
    for ours, theirs in zip(decoded(images).val_dataloader(), images.val_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
    assert kept(own_cache) == 17


def test_whole_images_are_kept_of_training_alone(images: ImageDataModule, own_cache: Path) -> None:
    decoded(images, "standard", scale=0.35)
    assert sorted(found.rows for found in cached_sets(own_cache, IMAGES)) == [11, 16]
    decoded(images, "caltech", scale=0.35, degrees=15, color_jitter=0.1)  # other parts of them, of another size
    decoded(images, "flip")
    assert sorted(found.rows for found in cached_sets(own_cache, IMAGES)) == [11, 11, 16]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("data.cache_gb=1e-5", "more than data.cache_gb=1e-05: they are read anew every epoch"),
        ("trainer.limit_val_batches=1", "for runs that see all images (trainer.limit_*_batches): they are read anew"),
    ],
)
def test_images_that_are_not_kept_are_read_as_before(
    word: str, why: str, train: Train, folders: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*TINY_RESNET, "freeze=false", "epochs=1", "data=imagefolder", f"data.root={folders}")
    with caplog.at_level(logging.WARNING):
        metrics = train(*words, "data.cache=decoded", word)
    assert why in caplog.text
    assert metrics["epochs/run"] == 1
    assert kept(own_cache) == 0


def test_what_was_not_used_for_longest_makes_room(images: ImageDataModule, own_cache: Path) -> None:
    decoded(images)
    size = sum(found.size for found in cached_sets(own_cache, IMAGES))
    val = images.splits["val"]
    for number, path in enumerate(val.images):
        photo(Path(path), number, size=(50, 50), seed=number)
    decoded(module({"train": val, "val": val}), max_gb=1.2 * size / 1e9)
    assert kept(own_cache) == 5


DECODE = """
import sys
from pathlib import Path
from tests.helpers.decoded import decoded, module, samples_in
decoded(module({"train": samples_in(Path(sys.argv[1]))}))
"""


def test_processes_share_the_work_and_one_that_is_killed_loses_little(own_cache: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos", images=150)
    assert ended(script(DECODE, root, environment=killed_at("after rows", 2))).returncode == -signal.SIGKILL
    before = kept(own_cache)
    assert 0 < before < 300
    assert [run.returncode for run in map(ended, [script(DECODE, root), script(DECODE, root)])] == [0, 0]
    assert kept(own_cache) == 300  # none twice, those of the first process too
    batches = decoded(module({"train": samples_in(root)})).evaluation_dataloader("train")
    files = module({"train": samples_in(root)}).evaluation_dataloader("train")
    assert all(torch.equal(ours, theirs) for (ours, _), (theirs, _) in zip(batches, files, strict=True))


def test_the_command_lists_and_clears_it(
    images: ImageDataModule, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded(images, "standard", scale=0.35)
    main(["cache"])
    printed = capsys.readouterr().out
    assert "decoded images: 32 × 32 for evaluation  16 images" in printed
    assert "decoded images: whole, up to 4,096 pixels  11 images" in printed
    assert "27 images" in printed
    freed, in_use = clear(own_cache)
    assert (freed > 0, in_use, kept(own_cache)) == (True, 0, 0)
