"""Networks without their last layer, and weights that fit or say what does not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from headstart.data.preprocessing import Preprocessing
from headstart.models import small_networks
from headstart.models.backbone import build_backbone, check_input
from headstart.models.build import open_backbone
from headstart.models.head import build_head
from headstart.models.weights import read_preprocessing
from headstart.utils.errors import ModelError
from headstart.utils.files import write_json
from tests.helpers.runs import SMALL, composed


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_torchvision_network_gives_its_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def widths_on_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):  # RegNets compute their widths with tensors
            return widths(*args, **kwargs)

    widths = models.regnet.BlockParams.from_init_params
    monkeypatch.setattr(models.regnet.BlockParams, "from_init_params", widths_on_cpu)
    with torch.device("meta"):  # shapes without memory
        backbone = build_backbone("torchvision", name, None)
        size = backbone.preprocessing.crop
        for mode in (True, False):
            features = backbone.module.train(mode)(torch.empty(2, 3, size, size))
            assert features.shape == (2, backbone.num_features)


def test_parameter_counts_are_the_articles() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        vgg = build_backbone("torchvision", "vgg16", None)
        head = build_head("mlp", vgg.num_features, 100, hidden=256, dropout=0.4)
    assert (count(vgg.module) + count(head), count(head)) == (135_335_076, 1_074_532)
    cnn = build_backbone("headstart", "simple_cnn", None)
    assert count(cnn.module) + count(build_head("linear", cnn.num_features, 2)) == 50_610


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_networks_give_their_features(name: str) -> None:
    pytest.importorskip("timm")
    check_input(build_backbone("timm", name, None), 224)


def test_a_size_that_a_network_does_not_take_is_known_at_once() -> None:
    networks = ("torchvision", "vit_b_16"), ("timm", "vit_tiny_patch16_224"), ("headstart", "simple_cnn")
    for library, name in networks:
        backbone = build_backbone(library, name, None)
        assert backbone.fixed_size
        with pytest.raises(ModelError, match=rf"{name} does not take images of 96 × 96: .*data.image_size=224"):
            check_input(backbone, 96)
    for library, name in (("torchvision", "resnet18"), ("timm", "resnet18"), ("headstart", "glyphnet")):
        backbone = build_backbone(library, name, None)
        assert not backbone.fixed_size
        check_input(backbone, 96)


def test_a_network_that_was_checked_at_one_size_is_checked_at_another() -> None:
    """A process checks a network and a size once, as the jobs of a sweep share them."""
    words = (*SMALL, "model=simple_cnn", "freeze=false")
    for _ in range(2):
        assert open_backbone(composed(*words)).preprocessing.crop == 224
        with pytest.raises(ModelError, match="simple_cnn does not take images of 96 × 96"):
            open_backbone(composed(*words, "data.image_size=96"))


def test_unknown_networks_get_a_suggestion() -> None:
    with pytest.raises(
        ModelError, match="torchvision has no classification network 'resnet43'. Did you mean 'resnet34'"
    ):
        build_backbone("torchvision", "resnet43", None)
    with pytest.raises(ModelError, match="timm has no network 'resnet81'. Did you mean 'resnet18'"):
        build_backbone("timm", "resnet81", None)
    with pytest.raises(ModelError, match="simple_cnn has no pretrained weights"):
        build_backbone("headstart", "simple_cnn", "default")


@pytest.mark.usefixtures("offline")
def test_weights_without_a_network_say_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be downloaded .*Put https://.*squeezenet1_1.*\.pth into .*hub"):
        build_backbone("torchvision", "squeezenet1_1", "default")


# --- weights from files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.mobilenet_v2(num_classes=7)  # somebody's own classifier


def loaded(path: Path) -> dict[str, torch.Tensor]:
    return build_backbone("torchvision", "mobilenet_v2", str(path)).module.state_dict()


@pytest.mark.parametrize("form", ["pth", "state_dict", "safetensors", "headstart"])
def test_a_file_is_loaded_without_its_old_classifier(form: str, network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "headstart":
        body = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("classifier.")}
        torch.save({"state_dict": {**body, "head.weight": torch.zeros(7, 1280)}}, path)
    else:
        torch.save({"state_dict": state} if form == "state_dict" else state, path)
    loaded_state = loaded(path)
    assert set(loaded_state) == {name for name in state if not name.startswith("classifier.")}
    assert all(torch.equal(value, state[name]) for name, value in loaded_state.items())


def test_names_of_old_densenet_files_are_understood(tmp_path: Path) -> None:
    state = models.densenet121().state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for name, v in state.items()}
    torch.save(old, tmp_path / "densenet.pth")
    loaded_state = build_backbone("torchvision", "densenet121", str(tmp_path / "densenet.pth")).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded_state.items())


def test_a_file_named_like_torchvisions_gets_its_preprocessing(network: nn.Module, tmp_path: Path) -> None:
    for weights in models.get_model_weights("mobilenet_v2"):
        path = tmp_path / Path(weights.url).name
        torch.save(network.state_dict(), path)
        expected = weights.transforms().resize_size[0]
        assert build_backbone("torchvision", "mobilenet_v2", str(path)).preprocessing.resize == expected


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("{", "model.json is damaged .* Copy it again, or move it away from the weights."),
        ('{"preprocessing": {"crop": 1000000000}}', "model.json is damaged or was changed: resize is missing. Copy it"),
        ('{"preprocessing": [1]}', "model.json is damaged or was changed"),
    ],
)
def test_what_lies_beside_weights_is_checked(beside: str, message: str, network: nn.Module, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(beside)
    with pytest.raises(ModelError, match=message):
        read_preprocessing(tmp_path / "model.safetensors")


def test_a_file_of_headstarts_own_brings_its_preprocessing(network: nn.Module, tmp_path: Path) -> None:
    body = {f"backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("classifier.")}
    own = Preprocessing(100, 96, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    torch.save({"state_dict": body, "hyper_parameters": {"preprocessing": asdict(own)}}, tmp_path / "best.ckpt")
    save_file(body, tmp_path / "model.safetensors")
    write_json(tmp_path / "model.json", {"preprocessing": asdict(own)})
    for name in ("best.ckpt", "model.safetensors"):
        assert build_backbone("torchvision", "mobilenet_v2", str(tmp_path / name)).preprocessing == own


def test_the_embedded_weights_are_those_on_record() -> None:
    weights = Path(small_networks.__file__).with_name("glyphnet.safetensors")
    record = json.loads(weights.with_suffix(".json").read_text())
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    assert weights.stat().st_size < 1_000_000
    build_backbone("headstart", "glyphnet", "default")


def test_what_does_not_fit_is_named(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    path = tmp_path / "file.pth"
    first = "features.0.0.weight"
    torch.save({"extra.weight": torch.zeros(1), **{k: v for k, v in state.items() if k != first}}, path)
    with pytest.raises(ModelError, match=rf"1 missing: {first}; 1 unknown: extra.weight"):
        loaded(path)
    torch.save({**state, first: torch.zeros(32, 1, 3, 3)}, path)
    with pytest.raises(ModelError, match=r"1 of another shape: features.0.0.weight \(32, 1, 3, 3\) instead of"):
        loaded(path)
    with pytest.raises(ModelError, match=r"file.pth does not fit .*Is it another network's file"):
        build_backbone("torchvision", "squeezenet1_0", str(path))


def test_files_that_hold_no_weights_are_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone.pth: no such file of weights"):
        loaded(tmp_path / "gone.pth")
    torch.save(network, tmp_path / "pickled.pth")  # the module itself needs pickle
    with pytest.raises(ModelError, match=r"holds more than tensors .*state_dict\(\)"):
        loaded(tmp_path / "pickled.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        loaded(tmp_path / "list.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ModelError, match=f"{name} is damaged"):
            loaded(tmp_path / name)
