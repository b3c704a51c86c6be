"""Names of backbones, and what is known of each without a network: what it costs, or why it cannot be had."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torchvision import models

from headstart.advice.candidates import find_candidates
from headstart.advice.names import read_name
from headstart.advice.result import Candidate
from headstart.config.compose import evaluation_config
from headstart.config.schema import Model
from headstart.utils.errors import ConfigError, ModelError


@pytest.fixture(autouse=True)
def _no_weights_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty folders where torchvision and timm keep what they download, and nobody to download it from."""

    def refuse(*_: Any) -> None:
        raise OSError("a test must not use the network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def found(name: str, *, fetch: bool = False) -> Candidate:
    """What is known of a name; beside it is one that can always be had."""
    _, candidate = find_candidates(["glyphnet", name], fetch=fetch)
    return candidate


@pytest.mark.parametrize(
    ("name", "library", "network", "weights"),
    [
        ("resnet18", "torchvision", "resnet18", "default"),
        ("glyphnet", "headstart", "glyphnet", "default"),
        ("simple_cnn", "headstart", "simple_cnn", None),
        ("torchvision/densenet121", "torchvision", "densenet121", "default"),
        ("timm/resnet18.a1_in1k", "timm", "resnet18.a1_in1k", "default"),
        ("mobilenet_v2@null", "torchvision", "mobilenet_v2", None),
        ("mobilenet_v2@../weights/file-1.pth", "torchvision", "mobilenet_v2", "../weights/file-1.pth"),
        ("torchvision/densenet121@my files/a=(1), b.pth", "torchvision", "densenet121", "my files/a=(1), b.pth"),
    ],
)
def test_a_name_selects_what_its_overrides_select(name: str, library: Any, network: str, weights: str | None) -> None:
    choice = read_name(name)
    assert choice.model == Model(library=library, name=network, weights=weights)
    assert evaluation_config(None, choice.overrides).model == choice.model


def test_the_default_names_exist_and_what_each_costs_is_known() -> None:
    candidates = find_candidates(evaluation_config(None, []).advise.models, fetch=False)
    assert len(candidates) == 12
    for candidate in candidates:
        assert candidate.problem == "" or candidate.problem.startswith("not on this machine: "), candidate
        assert candidate.parameters
        assert candidate.megabytes
        assert candidate.image_size
    costs = [candidate.parameters or 0 for candidate in candidates]
    assert max(costs) > 50 * min(costs)
    licences = {candidate.name: candidate.licence for candidate in candidates}
    assert licences["glyphnet"] == "MIT"
    assert licences["resnet50"] is None  # torchvision does not say
    assert licences["timm/vit_base_patch16_siglip_224.webli"] == "apache-2.0"


def test_weights_that_are_not_there_are_named_with_their_size() -> None:
    candidate = found("resnet50")
    assert candidate.problem == "not on this machine: 103 MB to download; advise.fetch=true fetches it"
    assert candidate.published == pytest.approx(0.80858)
    assert candidate.parameters == 25_557_032 - 2048 * 1000 - 1000
    assert candidate.image_size == 224
    # timm states no size: that of 21.7 M parameters and of a classifier for 21,843 classes.
    assert found("timm/vit_small_patch16_224.augreg_in21k").problem.startswith("not on this machine: 120 MB")


def test_the_licence_of_torchvisions_weights_is_found() -> None:
    licence = found("torchvision/vit_h_14").licence
    assert licence == "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"


def test_what_torchvision_has_downloaded_is_there() -> None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(models.ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(3_000_000))
    candidate = found("resnet18")
    assert (candidate.problem, candidate.megabytes) == ("", 3.0)
    assert candidate.overrides == ("model=resnet18",)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_timm_has_downloaded_is_there(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0")
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "snapshots" / "0" / file).write_bytes(bytes(2_000_000))
    candidate = found("timm/resnet18.a1_in1k")
    assert (candidate.problem, candidate.megabytes, candidate.licence) == ("", 2.0, "apache-2.0")
    assert candidate.overrides == ("model=timm", "model.name=resnet18.a1_in1k")
    assert candidate.parameters == 11_176_512


def test_a_file_of_weights_is_read_at_once(tmp_path: Path) -> None:
    file = tmp_path / Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    torch.save(models.squeezenet1_1().state_dict(), file)
    candidate = found(f"torchvision/squeezenet1_1@{file}")
    assert candidate.problem == ""
    assert candidate.megabytes == pytest.approx(file.stat().st_size / 1e6)
    assert candidate.published == pytest.approx(0.58178)  # the file is torchvision's own by its name
    other = Path(file.rename(tmp_path / "mine.pth"))
    assert found(f"torchvision/squeezenet1_1@{other}").published is None
    assert "does not fit ResNet" in found(f"resnet18@{other}").problem
    for content in (b"broken", b""):
        other.write_bytes(content)
        assert f"{other} is damaged" in found(f"torchvision/squeezenet1_1@{other}").problem


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnet19", "there is no conf/model/resnet19.yaml. Did you mean 'resnet18'? Expected a file of conf/model,"),
        ("densenet121", "no conf/model/densenet121.yaml, but torchvision has it: write torchvision/densenet121."),
        ("timm", "timm has many networks: write timm/NAME."),
        ("torchvision/resnet19", "torchvision has no classification network 'resnet19'. Did you mean 'resnet18'?"),
        ("timm/resnet18x", "timm has no network 'resnet18x'. Did you mean 'resnet18'?"),
        ("timm/tiny_vit", "timm has no pretrained weights for tiny_vit: use timm/tiny_vit@FILE."),
        ("simple_cnn@default", "simple_cnn has no pretrained weights"),
        ("resnet18@nowhere.pth", "nowhere.pth: no such file of weights."),
    ],
)
def test_what_cannot_be_had_says_why(name: str, problem: str) -> None:
    assert problem in found(name).problem
    assert len(found(name).problem) < 200


def test_networks_of_timm_need_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert found("timm/resnet18").problem == 'model=timm needs timm: pip install -e ".[timm]"'


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18.a1_in1k"])
def test_a_download_that_fails_is_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # otherwise it tries for a minute
    assert "could not be downloaded" in found(name, fetch=True).problem


def test_random_weights_need_no_download() -> None:
    candidate = found("mobilenet_v3_small@null")
    assert (candidate.problem, candidate.published, candidate.licence) == ("", None, None)
    assert candidate.overrides == ("model=mobilenet_v3_small", "model.weights=null")


def test_a_name_that_is_repeated_counts_once() -> None:
    assert [candidate.name for candidate in find_candidates(["glyphnet", "glyphnet"], fetch=False)] == ["glyphnet"]


def test_nothing_to_compare_is_an_error_with_all_reasons() -> None:
    with pytest.raises(ConfigError, match="advise.models is empty: name at least one backbone"):
        find_candidates([], fetch=False)
    with pytest.raises(ModelError, match=r"none .* can be measured:\n  resnet18: not on .*\n  timm: timm has many"):
        find_candidates(["resnet18", "timm"], fetch=False)
