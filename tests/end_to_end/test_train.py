"""Whole runs: every option takes a step, run folders are complete, and runs are reproducible and resumable."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from headstart.data.build import open_source
from headstart.data.datamodule import ImageDataModule
from headstart.data.preprocessing import evaluation_transform
from headstart.data.splits import make_splits
from headstart.models.backbone import build_backbone
from headstart.models.build import open_backbone
from headstart.models.unfreezing import Finetuning
from headstart.runs.predictions import read_evaluation
from headstart.training.checkpoints import load_checkpoint
from headstart.training.classifier import TransferClassifier
from headstart.utils.errors import ConfigError, DataError, ModelError
from tests.helpers.commands import command, ended, python, script
from tests.helpers.images import MAKERS, class_folders
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import (
    DIGITS,
    FEW,
    RESNET18,
    ROOT,
    SMALL,
    TINY_RESNET,
    Train,
    choices,
    composed,
    figures,
    interrupt_after,
    read_metrics,
    tensors,
)
from tests.helpers.session import Once
from tests.helpers.trainers import fitted
from tests.helpers.watch import check_same

FAST = ("trainer=debug", "callbacks.checkpoint=false", "data.batch_size=4")


# --- every option takes a training step ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_source(name: str, train: Train, tmp_path: Path) -> None:
    root = MAKERS[name](tmp_path / "data")
    columns = ("data.image_column=image_names", "data.label_column=emergency_or_not") if name == "csv" else ()
    metrics = train(f"data={name}", f"data.root={root}", *columns, *TINY_RESNET, *FAST)
    assert metrics["data/train_size"] >= metrics["data/val_size"] > 0
    assert ("test/accuracy" in metrics) == (name not in ("csv", "emergency"))  # they have no test split


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_every_source_that_needs_no_files(name: str, train: Train) -> None:
    metrics = train(f"data={name}", *(["data.per_class=10"] if name == "glyphs" else []), *FAST)
    assert metrics["data/num_classes"] >= 10
    assert 0 <= metrics["test/top5_accuracy"] <= 1


LARGE = ("vgg16", "vgg16_bn", "vgg19", "vit_b_16")  # half a gigabyte each
NETWORKS = [name for name in choices("model") if name not in ("torchvision", "timm", *LARGE)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_model(name: str, train: Train, folders: Path) -> None:
    size = 224 if name == "simple_cnn" else 32
    sizes = (f"data.image_size={size}", f"data.resize={size}")
    metrics = train(f"model={name}", "data=imagefolder", f"data.root={folders}", *sizes, *FAST)
    assert metrics["params/trainable"] < metrics["params/total"]


@pytest.mark.parametrize("name", LARGE)
def test_every_large_model_takes_an_image(name: str) -> None:
    size = 224 if name == "vit_b_16" else 64
    backbone = open_backbone(composed(*SMALL, f"model={name}", f"data.image_size={size}", f"data.resize={size}"))
    assert backbone.num_features == (768 if name == "vit_b_16" else 4096)


@pytest.mark.parametrize("name", ["torchvision model.name=googlenet", "timm model.name=resnet10t"])
def test_networks_by_name(name: str, train: Train, folders: Path) -> None:
    sizes = ("data.image_size=64", "data.resize=64")
    train(*f"model={name}".split(), "data=imagefolder", f"data.root={folders}", "freeze=false", *sizes, *FAST)


# Every option takes steps in one of these, beside others that it may get in the way of.
TOGETHER = (
    "head=linear augment=none optimizer=adam scheduler=none callbacks=default logger=tensorboard freeze=false "
    "loss.label_smoothing=0.1 data.evaluation_batch_size=64",
    "head=mlp augment=flip optimizer=adamw scheduler=cosine callbacks=none logger=csv freeze=block1 "
    "loss.class_weights=balanced data.interpolation=bicubic trainer.gradient_clip_val=1.0",
    "augment=pad_crop optimizer=sgd scheduler=onecycle logger=[tensorboard,csv] freeze=false callbacks.ema=0.9 "
    "trainer.accumulate_grad_batches=2",
    "augment=standard scheduler=plateau freeze=false trainer.precision=bf16-mixed data.sampling=balanced "
    "augment.random_erasing=0.5 monitor=train/loss",
    "augment=caltech scheduler=step optimizer=auto head=mlp freeze=false trainer.precision=auto loss.mixup=0.2",
    "augment=randaugment scheduler=cosine trainer.deterministic=true loss.cutmix=1.0 callbacks.ema=0.9 head=mlp",
    "augment=trivialaugment scheduler=onecycle data.sampling=balanced trainer.accumulate_grad_batches=2",
)


@pytest.mark.parametrize("options", TOGETHER)
def test_every_other_option(options: str, train: Train) -> None:
    metrics = train(*FEW, "epochs=2", "data.batch_size=8", *options.split())
    assert metrics["epochs/run"] == 2
    assert torch.isfinite(torch.tensor(metrics["test/loss"]))


def test_no_option_is_forgotten() -> None:
    tried = set(" ".join(TOGETHER).split())
    for group in ("head", "augment", "optimizer", "scheduler", "callbacks", "logger"):
        # lbfgs takes one step for all images, and few others fit it: training/test_fitted_head.py
        assert {f"{group}={name}" for name in choices(group) if name != "lbfgs"} <= tried


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment(name: str, train: Train, tmp_path: Path) -> None:
    small = ["data.per_class=40"] if name == "pretrain_glyphs" else [f"data.root={tmp_path / 'data'}"]
    config = composed(f"experiment={name}", *small)
    if config.data.source in MAKERS:
        MAKERS[config.data.source](tmp_path / "data")
    if config.model.name in LARGE:
        small += ["model=timm", "model.name=tiny_vgg"]
    metrics = train(f"experiment={name}", *small, *FAST)
    assert metrics["epochs/run"] == 1


# --- the run folder ------------------------------------------------------------------------------------------


def test_the_run_folder_is_what_other_tools_rely_on(finished: Path) -> None:
    files = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    events = {file for file in files if file.startswith("tensorboard/events")}
    assert events
    assert files - events == {
        "config.yaml",
        "environment.json",
        "metrics.json",
        "split.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model/model.json",
        "model/model.safetensors",
        "tensorboard/hparams.yaml",
        "evaluation/val_accuracy_by_epoch.csv",
        *(
            f"evaluation/{split}/{name}"
            for split in ("val", "test")
            for name in ("metrics.json", "predictions.csv", "classes.csv", "outputs.safetensors")
        ),
    }
    metrics = read_metrics(finished)
    for split, size in (("train", 100), ("val", 90), ("test", 90)):
        assert metrics[f"data/{split}_size"] == size
        assert {f"{split}/{name}" for name in ("loss", "accuracy", "top5_accuracy", "macro_accuracy")} <= set(metrics)
        assert f"{split}/class_accuracy/7" in metrics
    assert metrics["params/total"] == metrics["params/trainable"]
    assert metrics["epochs/run"] == 3
    assert 1 <= metrics["epochs/best"] <= 3
    assert metrics["time/total_s"] > metrics["time/fit_s"] > 0


def test_the_split_and_the_environment_are_recorded(finished: Path) -> None:
    header, *rows = (finished / "split.csv").read_text().splitlines()
    assert header == "image,class,split"
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 100 + 90 + 90
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(environment["git"]["commit"]) == 40


def test_the_recorded_config_gives_the_same_metrics(finished: Path, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from headstart.config.check import check
    from headstart.train import run

    with initialize_config_dir(str(finished)):
        again = check(compose("config"))
    run(again, tmp_path / "again")
    assert figures(read_metrics(tmp_path / "again")) == figures(read_metrics(finished))


def digits_module(**fractions: float) -> ImageDataModule:
    splits = make_splits(open_source("digits"), **fractions, split_seed=0, train_per_class=10)
    transform = evaluation_transform(build_backbone("headstart", "glyphnet", None).preprocessing)
    return ImageDataModule(splits, training=transform, evaluation=transform, batch_size=32)


def evaluated(classifier: TransferClassifier, data: Any) -> dict[str, float]:
    """The metrics of Lightning's own Trainer."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(classifier, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_a_checkpoint_needs_no_pickle_and_gives_the_same_metrics(finished: Path) -> None:
    best = finished / "checkpoints" / "best.ckpt"
    torch.load(best, weights_only=True)
    metrics = evaluated(load_checkpoint(best), digits_module(val_fraction=0.05, test_fraction=0.05))
    for name in ("test/accuracy", "test/loss", "test/top5_accuracy", "test/class_accuracy/3"):
        assert round(metrics[name], 6) == read_metrics(finished)[name]


def test_the_model_folder_describes_the_model(finished: Path) -> None:
    described = json.loads((finished / "model" / "model.json").read_text())
    assert described["class_names"] == list("0123456789")
    assert described["model"] == {"library": "headstart", "name": "glyphnet"}
    assert described["preprocessing"]["crop"] == 32


def test_a_trained_model_is_a_head_start_for_the_next(finished: Path, train: Train) -> None:
    weights = finished / "model" / "model.safetensors"
    train("data=glyphs", "data.per_class=10", "epochs=1", f"model.weights={weights}")


def test_a_run_is_not_written_over(finished: Path, train: Train, tmp_path: Path) -> None:
    message = r"holds another run. Choose another hydra.run.dir, or .*ckpt_path="
    with pytest.raises(ConfigError, match=message):
        train(folder=finished)
    elsewhere = tmp_path / "elsewhere" / "last.ckpt"
    with pytest.raises(ConfigError, match=message):
        train(f"ckpt_path={elsewhere}", folder=finished)


def test_a_refused_run_leaves_the_log_of_the_other_run_alone(tmp_path: Path) -> None:
    for name in ("config.yaml", "train.log"):
        (tmp_path / name).write_text("the other run's")
    for overrides, message in ((SMALL, "holds another run. Choose another hydra.run.dir"), (("lr=-1",), "lr=-1: exp")):
        result = command(*overrides, f"hydra.run.dir={tmp_path}")
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
            "config.yaml": "the other run's",
            "train.log": "the other run's",
        }


# --- stopping and resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", choices("scheduler"))
def test_a_schedule_is_resumed_as_if_it_had_run_on(scheduler: str, tmp_path: Path) -> None:
    """Bit for bit: weights with dropout, BatchNorm and augmentation, and the rates."""
    settings = asdict(composed(f"scheduler={scheduler}").scheduler)
    settings |= {"plateau": {"patience": 0}, "step": {"step_size": 2}}.get(scheduler, {})
    _, whole = fitted(tmp_path / "whole", Finetuning(), epochs=5, freeze="block1", scheduler=settings)
    last = whole.folder / "before3" / "last.ckpt"
    _, rest = fitted(tmp_path / "rest", Finetuning(), epochs=5, freeze="block1", scheduler=settings, resumed=last)
    check_same(rest, whole, range(3, 5))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(train: Train, tmp_path: Path) -> None:
    """Its metrics, its best epoch, its last checkpoint, and what is frozen."""
    options = ("head=mlp", "freeze=stem", "augment=pad_crop", "scheduler=cosine", *FEW, "lr=3e-3", "epochs=4")
    whole = train(*options, folder=tmp_path / "whole")
    interrupt_after(2, *options, folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    rest = train(*options, f"ckpt_path={last}", folder=tmp_path / "rest")
    before, after, expected = (tensors(tmp_path / name) for name in ("part", "rest", "whole"))
    assert all(torch.equal(value, expected[name]) for name, value in after.items())
    assert figures(rest) == figures(whole)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("backbone.stem")} <= same
    assert not any(name.startswith(("head.", "backbone.block2.0.weight")) for name in same)


def test_a_run_that_was_stopped_early_has_stopped_when_it_is_resumed(train: Train, tmp_path: Path) -> None:
    options = ("epochs=20", "lr=0.1", "callbacks.early_stopping.patience=1", *FEW, "features=off")
    whole = train(*options)
    assert whole["epochs/run"] < 20
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = train(*options, f"ckpt_path={last}", folder=tmp_path / "again")
    assert figures(again) == figures(whole)


@pytest.fixture(scope="session")
def gone_wrong(made_once: Once) -> Path:
    """A run whose best epoch is its first: the learning rate is far too high."""
    from headstart.train import run

    options = ("freeze=false", *FEW, "epochs=3", "lr=0.3", "seed=1")
    return made_once("gone_wrong/run", lambda folder: run(composed(*SMALL, *options), folder))


def epoch(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["epoch"])


def test_the_model_folder_holds_the_best_epoch_and_not_the_last(gone_wrong: Path) -> None:
    best, last = (gone_wrong / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert epoch(best) < epoch(last) == 2
    state = torch.load(best, weights_only=True)["state_dict"]
    saved = load_file(gone_wrong / "model" / "model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in saved.items())


def test_the_best_epoch_survives_a_move_of_the_run_folder(gone_wrong: Path, train: Train, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(gone_wrong, moved)
    before = read_metrics(gone_wrong)
    options = ("freeze=false", *FEW, "epochs=4", "lr=0.3", "seed=1")
    for folder in (tmp_path / "another", moved):  # the second in its own folder, which it may write to
        after = train(*options, f"ckpt_path={moved}/checkpoints/last.ckpt", folder=folder)
        assert after["val/accuracy"] >= before["val/accuracy"]
        assert epoch(folder / "checkpoints" / "last.ckpt") == 3


def test_a_checkpoint_of_something_else_is_refused(finished: Path, train: Train, tmp_path: Path) -> None:
    best = finished / "checkpoints" / "best.ckpt"
    for overrides, difference in (
        ("freeze=true", "its freeze is False, and this run's is True"),
        ("head=mlp", "its head is name=linear, and this run's is name=mlp hidden=256 dropout=0.4"),
        ("data=glyphs data.per_class=12", "its class_names is 0, 1, 2"),
        ("optimizer=sgd", "its optimizer is name=adam .*, and this run's is name=sgd"),
        ("lr=0.5", "its optimizer is .*lr=0.003.*lr=0.5"),
        ("scheduler=cosine", "its scheduler is name=none, and this run's is name=cosine .*epochs=30"),
        ("data.image_size=48", "its preprocessing is .*crop=32.*crop=48"),
        ("data.split_seed=5", "its split is"),
        ("monitor=val/loss", "its monitor is val/accuracy"),
    ):
        with pytest.raises(ModelError, match=f"best.ckpt cannot be resumed: {difference}"):
            train("freeze=false", "lr=3e-3", *overrides.split(), f"ckpt_path={best}")
    (tmp_path / "broken.ckpt").write_text("nothing of the kind")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.ckpt")
    for name, message in (
        ("gone", "gone.ckpt: no such checkpoint"),
        ("broken", "broken.ckpt is damaged, or no checkpoint"),
        ("weights", "weights.ckpt is no checkpoint of headstart's. .*model.weights=PATH"),
    ):
        with pytest.raises(ModelError, match=message):
            train(f"ckpt_path={tmp_path}/{name}.ckpt")


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_wherever_it_is_decoded(workers: int, train: Train, tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    (tmp_path / "data" / "cat" / "3.jpg").write_text("not an image")
    with pytest.raises(DataError) as error:
        train(
            "data=imagefolder", f"data.root={tmp_path}/data", *TINY_RESNET, *FAST, f"data.num_workers={workers}",
            "trainer.fast_dev_run=false", "epochs=1",
        )  # fmt: skip
    assert str(error.value).startswith(f"{tmp_path}/data/cat/3.jpg: not an image that can be read")
    assert "Traceback" not in str(error.value)


def test_a_last_batch_of_one_image_does_not_end_a_run(train: Train, folders: Path) -> None:
    """17 images in batches of 16: BatchNorm cannot take one image of 1 × 1 pixels a channel."""
    options = ("freeze=false", "epochs=1", "data.batch_size=16", "data.test_fraction=0")
    metrics = train("data=imagefolder", f"data.root={folders}", *TINY_RESNET, *options)
    assert metrics["data/train_size"] == 17


def test_a_run_that_diverges_says_so(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    metrics = train("freeze=false", "lr=1e30", "optimizer=sgd", "epochs=1", *FEW)
    assert metrics["val/loss"] is None  # JSON has no NaN
    assert "the run diverged: " in caplog.text
    assert "Try a lower lr" in caplog.text


def test_a_backbone_frozen_at_random_is_warned_of(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train(*FAST)
    assert "the backbone is frozen at random weights" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(train: Train) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot run here with trainer.accelerator=gpu .* trainer=default fits every machine"
    ):
        train("trainer=gpu")
    with pytest.raises(ConfigError, match=r"cannot run here with .*trainer.strategy=bananas"):
        train("trainer.strategy=bananas")


def test_a_metric_that_is_not_measured(train: Train, folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor=val/top5_accuracy: .* There are .*val/loss"):
        train("data=imagefolder", f"data.root={folders}", *TINY_RESNET, "monitor=val/top5_accuracy")


# --- the command ---------------------------------------------------------------------------------------------


JOBS = """
import os, sys
from pathlib import Path
from headstart.train import run
from tests.helpers.runs import composed
folder, *overrides = sys.argv[1:]
for job in range(6):
    run(composed(*overrides), Path(folder, str(job)))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print("resident", pages * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_from_job_to_job(tmp_path: Path) -> None:
    """Jobs in one process, as a sweep runs them, with a network of 45 MB each."""
    images = class_folders(tmp_path / "data", images=5)
    options = (*SMALL, "data=imagefolder", f"data.root={images}", *RESNET18, "epochs=1", "freeze=layer3")
    done = ended(script(JOBS, tmp_path, *options))
    assert done.returncode == 0, done.stderr
    resident = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("resident")]
    assert len(resident) == 6
    assert resident[-1] - resident[2] < 30e6  # less than one network; the first jobs warm caches up


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """As a user runs it, in a new Python."""
    result = command(f"hydra.run.dir={tmp_path}", cold=True)
    assert result.returncode == 0, result.stderr
    assert read_metrics(tmp_path)["test/accuracy"] > 0.96
    assert f"run folder: {tmp_path}" in result.stdout
    assert (tmp_path / "report" / "index.html").exists()


def test_a_failed_job_is_one_message(tmp_path: Path) -> None:
    result = command("data=stl10", f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/run")
    assert result.returncode == 1
    assert "headstart: STL-10 is not in" in result.stderr
    assert "Traceback" not in result.stderr


TWO = (*SMALL[2:], "trainer=ddp", "trainer.accelerator=cpu")
LIVES = (*TWO, *DIGITS, "freeze=false", "callbacks=none", "data.train_per_class=12")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_run_has_the_checkpoints_of_one_that_is_not(train: Train, tmp_path: Path) -> None:
    overrides = ("freeze=false", "model.weights=default", "epochs=1", *FEW)
    eager = train(*overrides, folder=tmp_path / "eager")
    compiled = train(*overrides, "compile=true", folder=tmp_path / "compiled")
    assert compiled["val/loss"] == pytest.approx(eager["val/loss"], rel=0.01)  # sums are in another order
    expected, state = tensors(tmp_path / "eager"), tensors(tmp_path / "compiled")
    assert list(state) == list(expected)
    torch.testing.assert_close(state, expected, rtol=0.02, atol=0.01)
    load_checkpoint(tmp_path / "compiled" / "checkpoints" / "best.ckpt")


def test_a_process_that_is_lost_ends_the_run_with_a_message_and_the_run_resumes(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    overrides = (*LIVES, f"hydra.run.dir={tmp_path}")
    lost = killed_at("an epoch begins", 2, who="process", rank=1)
    result = command(*overrides, "epochs=3", environment=lost)
    assert result.returncode == 1
    assert "headstart: another process of this run has ended: killed, out of memory, its machine lost" in result.stderr
    assert f"Resume by ckpt_path={last}" in result.stderr
    assert "Traceback" not in result.stderr
    assert torch.load(last, weights_only=True)["epoch"] == 0
    result = command(*overrides, "epochs=3", f"ckpt_path={last}")
    assert result.returncode == 0, result.stderr
    assert read_metrics(tmp_path)["epochs/run"] == 3


def torchrun(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Two processes of train.py, as torchrun starts them."""
    run = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    environment = {**os.environ, "PYTHON_EXEC": python()}
    return subprocess.run([*run, *overrides], capture_output=True, text=True, cwd=ROOT, check=False, env=environment)


def test_processes_of_torchrun_train_as_those_of_lightning(tmp_path: Path) -> None:
    overrides = (*LIVES, "epochs=2")
    nameless = torchrun(*overrides)
    assert nameless.returncode != 0
    assert (
        "headstart: 2 processes were started, and must write one run folder: name it for all of them" in nameless.stderr
    )
    apart = torchrun(*SMALL[2:], f"hydra.run.dir={tmp_path}/apart")  # without trainer=ddp
    assert apart.returncode != 0
    assert "headstart: 2 processes were started, and this run is set to 1: trainer=ddp" in apart.stderr
    assert command(*overrides, f"hydra.run.dir={tmp_path}/lightning").returncode == 0
    result = torchrun(*overrides, f"hydra.run.dir={tmp_path}/torchrun")
    assert result.returncode == 0, result.stderr
    assert figures(read_metrics(tmp_path / "torchrun")) == figures(read_metrics(tmp_path / "lightning"))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP: metrics over all processes count each image once."""
    overrides = (*TWO, "epochs=1", "data.val_fraction=0.2005", "report=true")
    result = command(*overrides, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    metrics = read_metrics(tmp_path)
    assert (metrics["data/val_size"] % 2, metrics["data/test_size"] % 2) == (1, 1)
    # What is written is written once.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    events = [path.name for path in (tmp_path / "tensorboard").glob("events*")]
    assert len({name.partition(f".{socket.gethostname()}.")[2].split(".")[0] for name in events}) == 1  # of one process
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("checkpoints", "config.yaml", "environment.json", "evaluation", "metrics.json", "model", "report"),
        *("split.csv", "tensorboard", "train.log", "train_ddp_process_1.log"),
    }
    classifier = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    data = digits_module(val_fraction=0.2005, test_fraction=0.4)
    test_accuracy = evaluated(classifier, data)["test/accuracy"]
    assert metrics["test/accuracy"] == pytest.approx(test_accuracy, abs=1e-6)
    classifier.evaluated_split = "val"
    validation = evaluated(classifier, data.evaluation_dataloader("val"))
    for name in ("loss", "accuracy", "macro_accuracy", "top5_accuracy"):
        assert metrics[f"val/{name}"] == pytest.approx(validation[f"val/{name}"], abs=1e-6)
    # The outputs of the processes are merged in the order of the images.
    evaluation = read_evaluation(tmp_path / "evaluation" / "test")
    assert (evaluation.predicted == evaluation.labels).mean() == pytest.approx(test_accuracy, abs=1e-6)
    features, logits = evaluation.outputs.features.float(), evaluation.logits[evaluation.outputs.featured]
    assert torch.allclose(classifier.head(features), logits, atol=0.05)  # features are saved in float16
    assert (tmp_path / "report" / "index.html").exists()
    assert "there is no report" not in result.stderr + result.stdout
