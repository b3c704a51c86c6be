"""One model, one answer: training, predict, evaluate, ONNX Runtime and torch.export on the same real and odd images."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import headstart
from headstart.cli.main import main
from headstart.data.image_io import read_image
from headstart.inference.evaluate import evaluate
from headstart.inference.export import export
from headstart.inference.model import Model
from tests.helpers.images import make_odd_images
from tests.helpers.runs import ROOT, SIZE, TINY_RESNET, Train

ort: Any = importlib.import_module("onnxruntime")
CLOSE = 1e-3  # how far logits may be apart
FULL = {
    "mobilenet_v2": ("model=mobilenet_v2", "model.weights={shared}/weights/mobilenet_v2-imagenet.pth"),
    "resnet18": ("model=resnet18", "data.image_size=96"),
    "vgg11_bn": ("model=torchvision", "model.name=vgg11_bn", "data.image_size=64"),
    "vit_b_32": ("model=torchvision", "model.name=vit_b_32"),
}


def link_photographs(shared: Path, root: Path, odd: Path, *, train: int, val: int, vehicles: int) -> None:
    """Link so many ants and bees to train and val, and to val as many vehicles and one file of every odd kind."""
    ants_and_bees = shared / "data" / "hymenoptera"
    cars = sorted((shared / "data" / "emergency-vehicles" / "images").iterdir())
    for name, others in (("ants", cars[:vehicles]), ("bees", cars[vehicles : 2 * vehicles])):
        training = sorted((ants_and_bees / "train" / name).glob("*.jpg"))[:train]
        validation = sorted((ants_and_bees / "val" / name).iterdir())[:val]
        for split, files in (("train", training), ("val", [*validation, *others])):
            (root / split / name).mkdir(parents=True)
            for file in files:
                (root / split / name / file.name).symlink_to(file)
        for file in make_odd_images(odd / name).values():
            # GIFs are given the extension of a JPEG, as people do.
            shutil.copy(file, root / "val" / name / file.name.replace(".gif", ".jpg"))


def all_logits(model: Model, files: Sequence[Path], batch_size: int) -> Tensor:
    return torch.cat([x for x in model.logits_each(files, batch_size=batch_size) if isinstance(x, Tensor)])


def check_close(logits: Tensor, expected: Tensor) -> float:
    """Check that every image has the same class and close logits; return the largest difference."""
    assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))
    difference = float((logits - expected).abs().max())
    assert difference <= CLOSE
    return difference


@pytest.mark.parametrize(
    ("network", "features", "kind"),
    [
        ("tiny_resnet", "features=auto", "torch-export"),
        ("tiny_vgg", "features=auto", "onnx"),
        ("tiny_mobilenet", "features=off", "torch-export"),
        ("tiny_vit", "features=auto", "onnx"),
    ],
)
def test_one_answer_of_each_family(
    network: str, features: str, kind: str, shared: Path, train: Train, tmp_path: Path
) -> None:
    link_photographs(shared, tmp_path / "photographs", tmp_path / "odd", train=6, val=5, vehicles=5)
    check_one_answer(tmp_path, train, "model=timm", f"model.name={network}", *SIZE, features, kinds=(kind,))


def test_one_answer_of_a_network_at_full_size(shared: Path, train: Train, tmp_path: Path) -> None:
    link_photographs(shared, tmp_path / "photographs", tmp_path / "odd", train=6, val=5, vehicles=5)
    overrides = (override.format(shared=shared) for override in FULL["mobilenet_v2"])
    check_one_answer(tmp_path, train, *overrides, kinds=())  # the soak compares its exports, too


@pytest.mark.soak
@pytest.mark.parametrize("network", FULL)
def test_one_answer_of_every_family_at_full_size(network: str, shared: Path, train: Train, tmp_path: Path) -> None:
    link_photographs(shared, tmp_path / "photographs", tmp_path / "odd", train=30, val=200, vehicles=80)
    overrides = (override.format(shared=shared) for override in FULL[network])
    assert check_one_answer(tmp_path, train, *overrides) >= 300


def check_one_answer(
    folder: Path, train: Train, *overrides: str, kinds: Sequence[str] = ("onnx", "torch-export")
) -> int:
    """Compare all paths to an answer on photographs, and return the number of these."""
    data = ("data=imagefolder", f"data.root={folder / 'photographs'}", "data.test_fraction=0", "data.num_workers=null")
    metrics = train(*data, *overrides, "epochs=1", "lr=3e-3")
    run = folder / "run"
    model = headstart.load(run / "model", "cpu")

    evaluated = evaluate(run, folder / "photographs" / "val")
    files = [Path(image) for image in evaluated.images]
    expected = all_logits(model, files, 1)
    logits = {
        "evaluate": evaluated.logits,
        "batches of 64": all_logits(model, files, 64),
        "checkpoint": all_logits(headstart.load(run / "checkpoints" / "best.ckpt", "cpu"), files, 8),
    }
    prepared = torch.stack([model.transform(read_image(file)) for file in files])
    for kind in kinds:
        path = export(model, kind, folder / "export")[0].path
        if kind == "onnx":
            session = ort.InferenceSession(path)
            logits[kind] = torch.from_numpy(session.run(None, {"images": prepared.numpy()})[0])
        else:
            program = torch.export.load(path).module()
            with torch.inference_mode():
                logits[kind] = torch.cat([program(batch) for batch in prepared.split(64)])
    differences = {name: check_close(values, expected) for name, values in logits.items()}
    print(f"{overrides}: {len(files)} images, " + ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))

    # Validation in training was over the same images.
    assert metrics["data/val_size"] == len(files)
    assert metrics["val/accuracy"] == evaluated.metrics["test/accuracy"]
    assert metrics["val/loss"] == pytest.approx(evaluated.metrics["test/loss"], abs=2e-6)
    right = sum(answer.class_name == file.parent.name for answer, file in zip(model.predict(files), files, strict=True))
    assert round(right / len(files), 6) == metrics["val/accuracy"]
    return len(files)


def test_compiled_or_not(finished: Path, folders: Path) -> None:
    model = headstart.load(finished, "cpu")
    files = sorted(folders.rglob("*.jpg"))
    expected = all_logits(model, files, 8)
    backend = "inductor" if shutil.which("g++") else "aot_eager"  # the first one needs a compiler
    model.network = torch.compile(model.network, backend=backend)  # type: ignore[assignment]
    check_close(all_logits(model, files, 8), expected)


def test_a_model_folder_predicts_in_another_environment(trained: Path, folders: Path, tmp_path: Path) -> None:
    """A package that was built and installed, without the checkout; of the run only `model/`."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    copied = Path(shutil.copytree(ROOT / "src", tmp_path / "package" / "src")).parent  # building leaves files behind
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", copied], check=True)
    # torch and the like are not installed a second time: a .pth file adds the packages of this environment.
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copytree(trained / "model", tmp_path / "elsewhere" / "model")
    shutil.copy(folders / "dog" / "0.jpg", tmp_path / "elsewhere" / "photo.jpg")
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may name a checkout

    def output(*command: str | Path) -> str:
        folder = tmp_path / "elsewhere"
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=without).stdout

    answers = output(tmp_path / "env" / "bin" / "headstart", "predict", "model", "photo.jpg", "--format", "json")
    assert json.loads(answers)[0]["class"] == "dog"
    imported = output(python, "-c", "import headstart; print(headstart.__file__)")
    assert Path(imported.strip()).is_relative_to(tmp_path / "env")


def test_the_hackathons_submission(shared: Path, train: Train, tmp_path: Path) -> None:
    vehicles = shared / "data" / "emergency-vehicles"
    train("data=emergency", f"data.root={vehicles}", *TINY_RESNET, "data.train_per_class=100", "epochs=4", "lr=1e-2")
    out = tmp_path / "submission.csv"
    sources = (vehicles / "test.csv", "--images", vehicles / "images")
    main(["predict", *map(str, (tmp_path / "run", *sources, "--out", out))])
    requested = (vehicles / "test.csv").read_text().split()
    rows = [row.split(",") for row in out.read_text().splitlines()]
    assert rows[0] == ["image_names", "emergency_or_not"]
    assert [name for name, _ in rows[1:]] == requested[1:]
    assert len(rows) == 707
    assert {label for _, label in rows[1:]} == {"0", "1"}
