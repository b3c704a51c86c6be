"""The feature cache in whole runs: the same answer, never stale, nothing computed twice, nothing lost."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from headstart.cache.disk import cached_sets, sets_folder
from headstart.models.backbone import build_backbone
from headstart.training.checkpoints import load_checkpoint
from headstart.utils.errors import ConfigError, DataError, ModelError
from tests.helpers.classifiers import quiet_trainer
from tests.helpers.commands import command, ended, started
from tests.helpers.disk import limited
from tests.helpers.images import class_folders, photo
from tests.helpers.kill_points import killed_at
from tests.helpers.networks import TINY
from tests.helpers.runs import SIZE, SMALL, TINY_RESNET, Train, composed, findings, read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")
IMAGES = 20  # of the folders


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of random ResNet weights with statistics as after training."""
    torch.manual_seed(0)
    network = build_backbone("timm", "tiny_resnet", None).module
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def fit(weights: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Trains a head on a frozen ResNet for one epoch, in a new run folder each time."""
    from headstart.train import run

    root = class_folders(tmp_path / "images")

    def fit(*overrides: str) -> dict[str, Any]:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        data = ("data=imagefolder", f"data.root={root}", "data.test_fraction=0", f"model.weights={weights}")
        run(composed(*TINY_RESNET, *SMALL[1:], *data, "epochs=1", "check=off", *overrides), folder)
        return read_metrics(folder)

    return fit


def rows_in(cache: Path) -> int:
    return sum(cached.rows for cached in cached_sets(cache))


def size_of(cache: Path) -> int:
    return sum(cached.size for cached in cached_sets(cache))


def counts(metrics: dict[str, Any]) -> tuple[int, int]:
    return metrics["features/computed"], metrics["features/cached"]


# --- the same answer -----------------------------------------------------------------------------------------


def head_and_metrics(train: Train, folder: Path, *overrides: str) -> tuple[Tensor, dict[str, Any]]:
    metrics = train(*overrides, "epochs=5", "callbacks=none", folder=folder)
    tensors = load_file(folder / "model" / "model.safetensors")
    return torch.cat([value.flatten() for name, value in tensors.items() if name.startswith("head.")]), metrics


@pytest.mark.parametrize(("network", "head"), [*((network, "linear") for network in TINY), ("tiny_mobilenet", "mlp")])
def test_a_head_trained_on_features_is_the_one_trained_through_the_network(
    network: str, head: str, train: Train, folders: Path, tmp_path: Path
) -> None:
    model = ("model=timm", f"model.name={network}", *SIZE)
    overrides = ("data=imagefolder", f"data.root={folders}", "data.batch_size=8", f"head={head}", *model)
    expected, through = head_and_metrics(train, tmp_path / "off", *overrides, "features=off")
    assert "features/computed" not in through
    for engine, tolerance in (("eager", 1e-4), ("folded", 1e-2), ("onnx", 1e-2), ("auto", 1e-2)):
        given, metrics = head_and_metrics(train, tmp_path / engine, *overrides, f"features.engine={engine}")
        assert counts(metrics) == (IMAGES, 0)  # each engine has a set of its own
        deviation = float((given - expected).norm() / expected.norm())
        assert deviation < tolerance, engine
        assert metrics["val/accuracy"] == through["val/accuracy"]
        assert metrics["test/accuracy"] == through["test/accuracy"]


def test_checkpoints_are_of_the_whole_network(train: Train, tmp_path: Path) -> None:
    train("epochs=2", "head=mlp")
    for name in ("best", "last"):
        saved = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        classifier = load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert saved["state_dict"].keys() == classifier.state_dict().keys()
    model = load_file(tmp_path / "run" / "model" / "model.safetensors")
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in model.items())


def test_a_run_is_resumed_with_the_cache_or_without(train: Train, tmp_path: Path) -> None:
    once = train("epochs=4", "callbacks=default", folder=tmp_path / "once")
    train("epochs=2", folder=tmp_path / "half")
    resume = ("epochs=4", f"ckpt_path={tmp_path}/half/checkpoints/last.ckpt")
    with_cache = train(*resume, folder=tmp_path / "with")
    without = train(*resume, "features=off", folder=tmp_path / "without")
    assert findings(with_cache) == findings(once)
    assert without["val/accuracy"] == once["val/accuracy"]
    assert without["val/loss"] == pytest.approx(once["val/loss"], rel=1e-4)


@pytest.mark.parametrize("option", ["features=auto", "features=off"])
def test_the_checkpoints_of_a_run_that_was_killed_are_resumed_and_completed(
    option: str, train: Train, tmp_path: Path
) -> None:
    once = train("epochs=4", folder=tmp_path / "once")
    train("epochs=2", folder=tmp_path / "killed")
    for path in (tmp_path / "killed" / "checkpoints").glob("*.ckpt"):  # as they are in the middle of a run
        checkpoint = torch.load(path, weights_only=True)
        state = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("head.")}
        torch.save({**checkpoint, "state_dict": state}, path)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    with pytest.raises(ModelError, match="holds the head only, because its run was killed. Resume that run by ckpt_pa"):
        load_checkpoint(last)
    with pytest.raises(ModelError, match="holds a head only: its run was killed. Resume that run by ckpt_path first."):
        train(f"model.weights={last}", folder=tmp_path / "other")
    (tmp_path / "killed" / "metrics.json").unlink()
    resumed = train("epochs=4", option, f"ckpt_path={last}", folder=tmp_path / "killed")
    assert resumed["val/accuracy"] == once["val/accuracy"]
    for name in ("best", "last"):
        load_checkpoint(tmp_path / "killed" / "checkpoints" / f"{name}.ckpt")


def test_another_frozen_backbone_cannot_take_over_a_checkpoint(
    train: Train, tmp_path: Path, weights: Path, folders: Path
) -> None:
    overrides = ("data=imagefolder", f"data.root={folders}", *TINY_RESNET, "epochs=1")
    train(*overrides, folder=tmp_path / "first")
    with pytest.raises(ModelError, match="cannot be resumed: its backbone_sha256 is .* Resume with the settings"):
        train(*overrides, f"model.weights={weights}", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")


# --- never stale ---------------------------------------------------------------------------------------------


def change_weights(path: Path, suffix: str) -> None:
    state = torch.load(path, weights_only=True)
    name = next(name for name in state if name.endswith(suffix))
    state[name].view(-1)[0] += 0.1
    torch.save(state, path)


def change_pixel(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0, 0] ^= 64
    Image.fromarray(pixels).save(path)


def test_exactly_what_changed_is_computed_again(fit: Train, weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    assert counts(fit()) == (IMAGES, 0)
    assert counts(fit()) == (0, IMAGES)

    change_pixel(root / "cat" / "3.jpg")
    assert counts(fit()) == (1, IMAGES - 1)
    change_weights(weights, "conv1.weight")
    assert counts(fit()) == (IMAGES, 0)
    change_weights(weights, "bn1.running_var")
    assert counts(fit()) == (IMAGES, 0)
    for argument in (
        "data.resize=34",
        "data.interpolation=bicubic",
        "data.mean=[0.5,0.5,0.5]",
        "data.std=[0.2,0.2,0.2]",
    ):
        assert counts(fit(argument)) == (IMAGES, 0), argument
    for setting in ("trainer.precision=bf16-mixed", "trainer.precision=64-true", "features.engine=eager"):
        assert counts(fit(setting)) == (IMAGES, 0), setting
    assert counts(fit()) == (0, IMAGES)


def test_what_features_do_not_depend_on_costs_nothing(fit: Train, weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    fit()
    changes = ("data.split_seed=5", "seed=7", "lr=0.1", "head=mlp", "data.val_fraction=0.4", "data.batch_size=3")
    assert counts(fit(*changes)) == (0, IMAGES)
    (root / "cat" / "3.jpg").rename(root / "dog" / "33.jpg")  # another label, another name
    for path in root.rglob("*.jpg"):
        os.utime(path)
    assert counts(fit()) == (0, IMAGES)
    shutil.copytree(root, tmp_path / "copy")
    weights.rename(tmp_path / "other.pth")
    assert counts(fit(f"data.root={tmp_path}/copy", f"model.weights={tmp_path}/other.pth")) == (0, IMAGES)


def test_new_images_cost_as_many_as_they_are(fit: Train, tmp_path: Path) -> None:
    fit()
    for index in range(100, 105):
        photo(tmp_path / "images" / "dog" / f"{index}.jpg", 1, seed=index)
    shutil.copy(tmp_path / "images" / "dog" / "100.jpg", tmp_path / "images" / "dog" / "same.jpg")
    assert counts(fit()) == (5, IMAGES)


def test_images_in_memory_are_known_by_their_pixels(train: Train, tmp_path: Path) -> None:
    few = ("epochs=1", "data.train_per_class=3", "data.val_fraction=0.05", "data.test_fraction=0.05")
    computed, cached = counts(train(*few, folder=tmp_path / "first"))
    assert (computed > 100, cached) == (True, 0)
    assert counts(train(*few, folder=tmp_path / "second")) == (0, computed)


# --- augmentation --------------------------------------------------------------------------------------------


def test_every_epoch_has_its_view_and_each_is_computed_once(fit: Train, own_cache: Path) -> None:
    train_images = IMAGES - 3
    augmented = ("augment=flip", "features.views=3", "data.val_fraction=0.15")
    assert counts(fit(*augmented)) == (IMAGES + train_images, 0)  # one epoch needs one view
    assert counts(fit(*augmented, "epochs=2")) == (train_images, IMAGES + train_images)
    five = fit(*augmented, "epochs=5", "callbacks=none")
    assert counts(five) == (train_images, IMAGES + 2 * train_images)
    again = fit(*augmented, "epochs=5", "callbacks=none")
    assert counts(again) == (0, IMAGES + 3 * train_images)
    assert findings(again) == findings(five)
    shutil.rmtree(own_cache)
    recomputed = fit(*augmented, "epochs=5", "callbacks=none")
    assert findings(recomputed) == findings(five)  # views are of the image and their number alone


def test_a_backbone_in_training_mode_has_no_features_to_keep() -> None:
    from headstart.cache.features import frozen_features

    options: Any = dict.fromkeys(("num_features", "description", "engine", "views", "max_gb"))
    part = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten()).eval()
    part[0].train()
    with pytest.raises(ValueError, match="the backbone is in training mode: call its eval\\(\\), and freeze it"):
        frozen_features(part, None, quiet_trainer(), **options)  # type: ignore[arg-type]


def test_views_differ_and_are_shown_in_turn(folders: Path) -> None:
    from headstart.cache.features import frozen_features
    from headstart.data.augmentation import training_transform
    from headstart.data.build import open_source
    from headstart.data.datamodule import ImageDataModule
    from headstart.data.preprocessing import Preprocessing, evaluation_transform
    from headstart.data.splits import make_splits

    splits = make_splits(open_source("imagefolder", root=folders), val_fraction=0.2, test_fraction=0, split_seed=0)
    preprocessing = Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    training = training_transform(preprocessing, "standard", scale=0.3)
    images = ImageDataModule(
        splits, training=training, evaluation=evaluation_transform(preprocessing), batch_size=4, num_workers=0
    )
    served = frozen_features(
        torch.nn.Flatten().eval(),
        images,
        quiet_trainer(),
        num_features=3 * 32 * 32,
        description={},
        engine="eager",
        views=3,
        max_gb=1,
    )
    assert served is not None
    epochs = []
    for epoch in range(4):
        loader, through = served.data.train_dataloader(), images.train_dataloader()
        loader.sampler.set_epoch(epoch)
        through.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        labels = torch.cat([labels for _, labels in loader])
        assert torch.equal(labels, torch.cat([labels for _, labels in through]))  # the same order
        order, _ = loader.sampler.draw()
        epochs.append(torch.cat([features for features, _ in loader])[order.argsort()])
    assert torch.equal(epochs[0], epochs[3])
    assert all((epochs[0] - other).abs().amax(dim=1).min() > 0.1 for other in epochs[1:3])


# --- faults --------------------------------------------------------------------------------------------------


def test_a_damaged_row_is_computed_again(fit: Train, own_cache: Path) -> None:
    first = fit()
    (rows,) = sets_folder(own_cache).rglob("*.rows")
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    again = fit()
    assert counts(again) == (1, IMAGES - 1)
    assert findings(again) == findings(first)


def test_a_cache_whose_disk_fills_up_keeps_what_was_computed(train: Train, own_cache: Path, tmp_path: Path) -> None:
    full = rf"{own_cache}.*: cannot write to the cache .*kept\. Make room, .* then run the same command again\."
    overrides = ("epochs=1", "data.evaluation_batch_size=10")
    with limited(100_000), pytest.raises(DataError, match=full):
        train(*overrides, folder=tmp_path / "full")
    cached = rows_in(own_cache)
    metrics = train(*overrides, folder=tmp_path / "again")
    images = sum(metrics[f"data/{split}_size"] for split in ("train", "val", "test"))
    assert 0 < cached < images
    assert counts(metrics) == (images - cached, cached)


def test_what_is_remembered_wrongly_of_a_file_is_forgotten(
    fit: Train, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.cache.fingerprints.SETTLED_NS", 0)
    fit()
    with sqlite3.connect(own_cache / "digests.sqlite") as table:
        table.execute("UPDATE files SET digest = zeroblob(32) WHERE CAST(path AS TEXT) LIKE '%cat/3.jpg'")
    with pytest.raises(DataError, match=r"3\.jpg was changed while it was being read. Run the same command ag"):
        fit()
    assert counts(fit()) == (0, IMAGES)


def test_a_split_smaller_than_the_number_of_processes() -> None:
    from headstart.cache.feature_loaders import FeatureBatches, FeatureTable
    from headstart.cache.segments import Rows

    rows = Rows([], np.empty(0, np.int64), np.empty(0, np.int64), np.dtype("float32"), 8)
    table = FeatureTable(rows, np.zeros(2, np.int64))
    batches = [FeatureBatches(table, range(rank, 2, 4), batch_size=3) for rank in range(4)]
    assert [len(found) for found in batches] == [1, 1, 0, 0]
    assert list(batches[2]) == []


def test_features_that_are_not_finite_name_the_image(fit: Train, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["layer4.0.bn2.running_mean"][0] = float("nan")
    torch.save(state, weights)
    with pytest.raises(ModelError, match=r"(cat|dog)/\d+\.jpg: the backbone's features of this image are not finite"):
        fit()


def test_a_broken_image_names_itself_and_costs_only_itself(fit: Train, tmp_path: Path) -> None:
    broken = tmp_path / "images" / "dog" / "9.jpg"
    data = broken.read_bytes()
    broken.write_bytes(data[:200])
    with pytest.raises(DataError, match=r"9\.jpg: not an image that can be read"):
        fit("data.num_workers=1")
    broken.write_bytes(data)
    computed, cached = counts(fit())
    assert computed + cached == IMAGES
    assert cached > 0  # what was finished is not done again


def test_more_than_the_cache_may_have_is_computed_every_epoch(fit: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = fit("features.max_gb=1e-6")
    assert "more than features.max_gb=1e-06: the backbone runs again in every epoch" in caplog.text
    assert "features/computed" not in metrics
    assert findings(metrics)["val/accuracy"] == fit()["val/accuracy"]


def test_the_cache_stays_within_its_bound(fit: Train, own_cache: Path) -> None:
    size = IMAGES * (16 * 4 + 40)
    for mean in (0.1, 0.2, 0.3):
        fit(f"data.mean=[{mean},0,0]", f"features.max_gb={2.5 * size / 1e9}")
        assert size_of(own_cache) <= 2.5 * size
    assert counts(fit("data.mean=[0.2,0,0]"))[0] == 0  # the one before the last is still there
    assert counts(fit("data.mean=[0.1,0,0]"))[0] == IMAGES


def test_images_of_other_data_make_room_in_the_same_set(fit: Train, own_cache: Path, tmp_path: Path) -> None:
    size = IMAGES * (16 * 4 + 40)
    fit()
    class_folders(tmp_path / "others", images=11)
    limit = f"features.max_gb={1.5 * size / 1e9}"
    assert counts(fit(f"data.root={tmp_path}/others", limit)) == (2, IMAGES)
    shutil.rmtree(tmp_path / "others")
    for index in range(22):
        photo(tmp_path / "others" / ("cat", "dog")[index % 2] / f"{index}.jpg", index % 2, seed=1000 + index)
    assert counts(fit(f"data.root={tmp_path}/others", limit)) == (22, 0)
    assert size_of(own_cache) <= 1.5 * size


@pytest.mark.parametrize("option", ["features=off", "freeze=false", "freeze=layer3", "trainer.limit_train_batches=1"])
def test_what_is_not_wholly_frozen_or_not_wholly_seen_runs_through_the_network(option: str, fit: Train) -> None:
    assert "features/computed" not in fit(option)


def test_an_engine_that_cannot_be_had_says_what_to_do(fit: Train) -> None:
    with pytest.raises(ConfigError, match="features.engine=onnx computes on the CPU in float32: use trainer=cpu"):
        fit("features.engine=onnx", "trainer.precision=bf16-mixed")


# --- processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def overrides(weights: Path, tmp_path: Path) -> tuple[str, ...]:
    """Of a command whose backbone takes its time, for 80 images in five batches of 16."""
    root = class_folders(tmp_path / "images", images=40)
    data = ("data=imagefolder", f"data.root={root}", "data.test_fraction=0", f"model.weights={weights}")
    return (*TINY_RESNET, *SMALL[1:], *data, "epochs=1", "features.engine=folded", "check=off")


EIGHTY, BATCH = 80, 16


def test_two_runs_at_the_same_time_compute_each_image_once(
    own_cache: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for run in [started(*overrides, f"hydra.run.dir={folder}") for folder in folders]:
        result = ended(run)
        assert result.returncode == 0, result.stderr
    first, second = map(read_metrics, folders)
    assert counts(first)[0] + counts(second)[0] == EIGHTY == rows_in(own_cache)
    assert findings(first) == findings(second)


def test_a_run_that_is_killed_again_and_again_loses_nothing(
    own_cache: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """What was finished stays; of rows without a record, their batch alone is computed again."""
    for number, (point, count, cached) in enumerate(
        [
            ("after rows", 1, BATCH),
            ("between rows and their record", 1, BATCH),
            ("between rows and their record", 3, 2 * BATCH),  # the second write of a batch is that of its records
            ("after rows", 2, 4 * BATCH),
        ]
    ):
        killed = command(*overrides, f"hydra.run.dir={tmp_path / str(number)}", environment=killed_at(point, count))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert rows_in(own_cache) == cached
    last, undisturbed = tmp_path / "last", tmp_path / "undisturbed"
    assert command(*overrides, f"hydra.run.dir={last}").returncode == 0
    assert counts(read_metrics(last)) == (EIGHTY - 4 * BATCH, 4 * BATCH)
    assert rows_in(own_cache) == EIGHTY  # not one was computed twice
    shutil.rmtree(own_cache)
    assert command(*overrides, f"hydra.run.dir={undisturbed}").returncode == 0
    assert findings(read_metrics(last)) == findings(read_metrics(undisturbed))


def test_a_run_that_is_killed_while_it_fits_is_resumed(overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*overrides, "epochs=4", "callbacks.early_stopping=null")
    killed = command(*overrides, f"hydra.run.dir={tmp_path / 'killed'}", environment=killed_at("an epoch begins", 3))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    with pytest.raises(
        ModelError, match="holds the head only, because its run was killed. Resume that run by ckpt_path"
    ):
        load_checkpoint(checkpoint)
    resumed = command(*overrides, f"hydra.run.dir={tmp_path / 'resumed'}", f"ckpt_path={checkpoint}")
    assert resumed.returncode == 0, resumed.stderr
    assert command(*overrides, f"hydra.run.dir={tmp_path / 'once'}").returncode == 0
    assert findings(read_metrics(tmp_path / "resumed")) == findings(read_metrics(tmp_path / "once"))
    load_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")
