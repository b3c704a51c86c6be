"""The model folder: what is saved is read again, and nothing else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart
from headstart.inference.model import Model
from headstart.models.backbone import build_backbone
from headstart.models.model_folder import FORMAT_VERSION, find_artifact, read_artifact, save_model
from headstart.models.network import Uninitialised
from headstart.training.checkpoints import load_checkpoint
from headstart.utils.errors import DataError, ModelError
from headstart.utils.hashing import description_sha256
from tests.helpers.disk import limited_memory


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of the model folder alone."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def describe(model: Path, **changed: Any) -> None:
    path = model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_run_a_model_a_file_of_it_and_a_checkpoint_are_the_same_classifier(
    trained: Path, model: Path, folders: Path
) -> None:
    image = folders / "cat" / "0.jpg"
    paths = (trained, trained / "model", trained / "model" / "model.json", model, model / "model.safetensors")
    answers = {headstart.load(path, "cpu").predict(image) for path in (*paths, trained / "checkpoints" / "best.ckpt")}
    assert len(answers) == 1
    assert next(iter(answers)).class_name == "cat"


def test_what_a_model_says_about_itself(trained: Path) -> None:
    described = json.loads((trained / "model" / "model.json").read_text())
    assert described["format_version"] == FORMAT_VERSION
    assert described["class_names"] == ["cat", "dog"]
    assert described["data"] == {"source": "imagefolder", "split_seed": 0, "val_fraction": 0.15, "test_fraction": 0.3}
    assert described["freeze"] is True
    assert described["licence"] is None
    assert described["headstart"] == headstart.__version__
    assert torch.__version__.startswith(described["versions"]["torch"])
    metrics = json.loads((trained / "metrics.json").read_text())
    assert described["metrics"] == metrics


def test_a_compiled_classifier_is_saved_under_clean_names(trained: Path, tmp_path: Path) -> None:
    classifier = load_checkpoint(trained)
    plain = load_file(trained / "model" / "model.safetensors")
    whole = torch.compile(classifier).state_dict()
    classifier.backbone = torch.compile(classifier.backbone)
    classifier.backbone._orig_mod.layer1 = torch.compile(classifier.backbone._orig_mod.layer1)
    for name, state in (("whole", whole), ("parts", classifier.state_dict())):
        assert any("_orig_mod" in key for key in state)
        save_model(tmp_path / name, state, classifier.hparams)
        saved = load_file(tmp_path / name / "model.safetensors")
        assert saved.keys() == plain.keys()
        assert all(torch.equal(value, plain[key]) for key, value in saved.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "googlenet"])
def test_loading_without_initialisation_leaves_nothing_to_chance(name: str) -> None:
    """All that a file does not hold, such as tables that a network computes when it is built, is as always."""
    built = build_backbone("torchvision", name, None).module
    with Uninitialised():
        bare = build_backbone("torchvision", name, None).module
    held = built.state_dict().keys()
    assert bare.state_dict().keys() == held
    left = dict(bare.named_buffers())
    for key, value in built.named_buffers():
        if key not in held:
            assert torch.equal(value, left[key])


def remove(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def alter(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["head.bias"] += 1
    save_file(state, model / "model.safetensors")


def slip_in_a_pickle(model: Path) -> None:
    """A file of the right name whose digest is right, too, and that would run code if it were unpickled."""
    from headstart.utils.hashing import file_sha256

    (model / "model.safetensors").write_bytes(pickle.dumps(print))
    describe(model, sha256={"model.safetensors": file_sha256(model / "model.safetensors").hex()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove("model.safetensors"),
            "model.safetensors is missing: model.json beside it describes it. Copy the whole",
        ),
        (
            remove("model.json"),
            "model.json is missing: without it nobody knows the classes. Copy the whole model folder",
        ),
        (truncate, "model.safetensors is not the file that model.json describes: truncated or changed. Copy it again."),
        (alter, "model.safetensors is not the file that model.json describes: truncated or changed. Copy it again."),
        (slip_in_a_pickle, "model.safetensors is no safetensors file .*Copy the model folder again."),
        (lambda model: (model / "model.json").write_text("{"), "model.json is damaged .*Copy it again."),
        (lambda model: (model / "model.json").write_text("{}"), "model.json is no description of headstart's"),
        (
            lambda model: describe(model, format_version=99, headstart="9.0"),
            f"is of format 99, written by headstart 9.0; headstart .* reads up to {FORMAT_VERSION}. Install a newer",
        ),
        (
            lambda model: describe(model, class_names=None),
            "model.json is damaged or was changed: class_names=None: expected a valid list. Copy it again.",
        ),
        (
            lambda model: describe(model, class_names=["dog", "cat"]),
            "model.json was changed since it was written with model.safetensors. Copy it again.",
        ),
        (
            lambda model: describe(model, metrics={"test/accuracy": 1}),
            "model.json was changed since it was written with",
        ),
    ],
)
def test_a_damaged_model_folder_is_refused(damage: Callable[[Path], object], message: str, model: Path) -> None:
    damage(model)
    with pytest.raises(ModelError, match=message):
        headstart.load(model)


def test_a_network_that_this_version_builds_otherwise_is_refused(model: Path) -> None:
    artifact = read_artifact(model)
    del artifact.state["backbone.conv1.weight"]
    with pytest.raises(ModelError, match=r"its weights are not those of resnet18 as this version builds it .*conv1"):
        Model(artifact)


def changed(model: Path, key: str, value: object) -> Path:
    """A model folder whose digests fit and whose description says something else; DROPPED takes a key away."""
    artifact = read_artifact(model)
    description = json.loads(json.dumps(artifact.description))
    *parents, last = key.split(".")
    inner = description
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    if value is DROPPED:
        del inner[last]
    save_model(model, artifact.state, description)
    return model


DROPPED = object()
THREE = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", {}, "model.library is missing"),
        ("model", "resnet18", "model='resnet18': "),
        ("model.library", "os", "model.library='os': expected 'headstart', 'torchvision' or 'timm'"),
        ("model.name", ["resnet18"], r"model.name=\['resnet18'\]: expected a text"),
        ("model.weights", "/etc/passwd", "there is no key model.weights"),
        ("model.image_size", 10**6, "there is no key model.image_size"),
        ("head", {}, "head={}: Unable to extract tag using discriminator 'name'"),
        ("head.name", "huge", "head=.*'huge'.* does not match any of the expected tags: 'linear', 'mlp'"),
        ("head.num_features", 7, "there is no key head.linear.num_features"),
        ("head.in_features", 7, "there is no key head.linear.in_features"),
        ("head", {"name": "mlp", "hidden": -1, "dropout": 0.5}, "hidden=-1: expected greater than or equal to 1"),
        ("head", {"name": "mlp", "hidden": 10**11, "dropout": 0.5}, "hidden=100000000000: expected less than"),
        ("head", {"name": "mlp", "hidden": 2.5, "dropout": 0.5}, "hidden=2.5: expected a valid integer"),
        ("head", {"name": "mlp", "hidden": 8, "dropout": 1}, "dropout=1: expected less than 1"),
        ("class_names", [], r"class_names=\[\]: List should have at least 2 items"),
        ("class_names", [1, 2], "class_names.0=1: expected a text"),
        ("class_names", ["cat", "cat"], "two classes have one name"),
        ("class_names", ["cat", ""], "a class has no name"),
        ("preprocessing", {}, "preprocessing.resize is missing"),
        ("preprocessing.crop", -5, "preprocessing.crop=-5: expected greater than or equal to 1"),
        ("preprocessing.crop", 0, "preprocessing.crop=0: expected greater than or equal to 1"),
        ("preprocessing.crop", "32", "preprocessing.crop='32': expected a valid integer"),
        ("preprocessing.crop", 200_000, "preprocessing.crop=200000: expected less than or equal to 4096"),
        ("preprocessing.crop", 64, "crop=64 is larger than resize=32"),
        ("preprocessing.resize", 60_000, "preprocessing.resize=60000: expected less than or equal to 8192"),
        ("preprocessing.resize", 10**9, "preprocessing.resize=1000000000: expected less"),
        ("preprocessing.mean", THREE[:2], r"preprocessing.mean=.*should have at least 3 items"),
        ("preprocessing.mean", [0, 0, "a"], "preprocessing.mean.2='a': expected a valid number"),
        ("preprocessing.std", [0.5, 0, 0.5], "preprocessing.std.1=0: expected greater than 0"),
        ("preprocessing.interpolation", "magic", "preprocessing.interpolation='magic': expected 'nearest', "),
        ("preprocessing.sharpen", 1, "there is no key preprocessing.sharpen"),
        ("temperature", "1.5", "temperature='1.5': expected a valid number"),
        ("temperature", [1], r"temperature=\[1\]: expected a valid number"),
        ("temperature", None, "temperature=None: expected a valid number"),
        ("temperature", 0, "temperature=0: expected greater than 0"),
        ("freeze", DROPPED, "freeze is missing"),
        ("data", [1], r"data=\[1\]: "),
        ("data.classes", ["a"], "data.classes=.*: expected a valid dictionary"),
        ("metrics", [1], r"metrics=\[1\]: expected a valid dictionary"),
        ("format_version", 2.0, None),
    ],
)
def test_what_a_stranger_may_have_written_is_checked(key: str, value: object, message: str | None, model: Path) -> None:
    """The digests fit: who changes a description can make them fit."""
    if key == "format_version":
        description = json.loads((model / "model.json").read_text())
        (model / "model.json").write_text(json.dumps({**description, key: value}))
        message = "model.json is no description of headstart's"
    else:
        changed(model, key, value)
        message = f"model.json is damaged or was changed: .*{message}"
    with pytest.raises(ModelError, match=message):
        headstart.load(model)


def test_a_description_that_is_nested_too_deeply(model: Path) -> None:
    (model / "model.json").write_text('{"format_version": 2, "a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelError, match=r"model.json is damaged .*it is nested too deeply.*Copy it again."):
        headstart.load(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"library": "torchvision", "name": "vit_h_14"}),
        ("model", {"library": "timm", "name": "vit_giant_patch14_dinov2"}),
        ("head", {"name": "mlp", "hidden": 2**20, "dropout": 0.5}),
        ("class_names", [str(number) for number in range(200_000)]),
    ],
)
def test_no_memory_is_taken_for_what_the_weights_do_not_have(key: str, value: object, model: Path) -> None:
    changed(model, key, value)
    with limited_memory(1 << 30), pytest.raises(ModelError, match="its weights are not those of"):
        headstart.load(model)


def test_what_a_checkpoint_says_is_checked(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    description = checkpoint["hyper_parameters"]
    for wrong, message in (
        ({"epoch": "one"}, "epoch='one': expected a valid integer"),
        ({"hyper_parameters": {**description, "temperature": "hot"}}, "hyper_parameters.temperature='hot': expected"),
        ({"state_dict": {"head.weight": 1}}, "its weights are not tensors alone"),
        ({"state_dict": [1]}, r"state_dict=\[1\]: expected a valid dictionary"),
    ):
        torch.save({**checkpoint, **wrong}, tmp_path / "wrong.ckpt")
        with pytest.raises(ModelError, match=f"wrong.ckpt is damaged or was changed: {message}"):
            headstart.load(tmp_path / "wrong.ckpt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.exists, "path: no such run folder, model folder or checkpoint."),
        (Path.mkdir, "path holds no model.json: expected a run folder, a model folder or a checkpoint."),
        (
            lambda path: path.write_bytes(pickle.dumps(print)),
            "path is damaged, or no checkpoint of headstart's: it do",
        ),
        (
            Path.touch,
            "path is damaged, or no checkpoint of headstart's: it does not hold tensors and plain values alone",
        ),
        (lambda path: path.write_text("a text"), "path is damaged, or no checkpoint of headstart's"),
        (lambda path: torch.save({"hyper_parameters": None}, path), "path is no checkpoint of headstart's."),
        (
            lambda path: torch.save({"hyper_parameters": {"class_names": []}, "state_dict": {}}, path),
            "path is no checkpoint of headstart's. To start from a file of weights, use model.weights=PATH.",
        ),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "path is no checkpoint of headstart's."),
    ],
)
def test_what_is_no_model_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "path")
    with pytest.raises(ModelError, match=message):
        headstart.load(tmp_path / "path")


def test_a_run_that_has_not_ended_names_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "run" / "checkpoints")
    for name in ("best.ckpt", "last.ckpt"):
        with pytest.raises(ModelError, match=f"run is a run that has not ended: .* Use .*run/checkpoints/{name}."):
            find_artifact(tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / name).unlink()


def test_tuples_and_lists_are_the_same_description() -> None:
    described = {"class_names": ("a",), "preprocessing": {"mean": (0.1, 0.2, 0.3)}}
    assert description_sha256(described) == description_sha256(json.loads(json.dumps(described)))


def test_what_was_read_can_be_saved_again(trained: Path, tmp_path: Path) -> None:
    artifact = read_artifact(trained)
    awkward = {**artifact.description, "class_names": ["caf\udce9", "a,b\n✓"]}
    save_model(tmp_path / "again", artifact.state, awkward)
    assert headstart.load(tmp_path / "again").class_names == ("caf\udce9", "a,b\n✓")


def test_a_model_that_diverged_says_so(trained: Path, folders: Path, tmp_path: Path) -> None:
    artifact = read_artifact(trained)
    artifact.state["head.bias"][:] = torch.nan
    save_model(tmp_path / "nan", artifact.state, artifact.description)
    with pytest.raises(DataError, match="nan: its logits are not finite. Training diverged: try a lower lr."):
        headstart.load(tmp_path / "nan", "cpu").predict(folders / "cat" / "0.jpg")


class MakesFolder:
    """What makes a folder when it is unpickled, as an attacker's object would do worse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_never_runs_code(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**checkpoint, "more": MakesFolder(tmp_path / "made")}, tmp_path / "evil.ckpt")
    with pytest.raises(ModelError, match=r"evil.ckpt is damaged, or no .*does not hold tensors and plain values alone"):
        read_artifact(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()
