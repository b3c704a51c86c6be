"""Engines give the plain network's features, or say that they do not."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torchvision.transforms import v2

from headstart.cache.engines import TOLERANCE, Network, build_engine
from headstart.cache.fingerprints import code_sha256, fingerprint
from headstart.models.backbone import build_backbone
from headstart.utils.errors import ModelError
from headstart.utils.hashing import module_sha256

IMAGES = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(module: nn.Module) -> Network:
    module = module.eval().to(memory_format=torch.channels_last)
    return Network(module.requires_grad_(False), torch.device("cpu"), Precision())


def frozen(library: str, name: str) -> Network:
    torch.manual_seed(0)
    module = build_backbone(library, name, None).module
    for buffer_name, buffer in module.named_buffers():
        if "running_mean" in buffer_name:  # as after training: folding 0 and 1 in would prove nothing
            buffer.normal_(0, 0.1)
        elif "running_var" in buffer_name:
            buffer.uniform_(0.5, 1.5)
    return network(module)


@pytest.mark.parametrize("engine", ["eager", "folded", "onnx"])
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "googlenet"),
        ("torchvision", "densenet121"),
        ("torchvision", "squeezenet1_1"),
        ("torchvision", "shufflenet_v2_x0_5"),
        ("torchvision", "regnet_y_400mf"),
        ("timm", "resnet10t"),
    ],
)
def test_engines_agree_with_the_network(library: str, name: str, engine: str) -> None:
    plain = frozen(library, name)
    expected = plain.run(plain.module, IMAGES)
    built = build_engine(engine, plain, IMAGES)
    assert built.name == engine
    difference = (built(IMAGES) - expected).norm(dim=1) / expected.norm(dim=1)
    assert difference.max() < TOLERANCE


@pytest.mark.parametrize("engine", ["eager", "folded", "onnx"])
def test_features_do_not_depend_on_what_else_is_computed(engine: str) -> None:
    """Bit for bit, so that a run that was killed and started again ends with the same figures."""
    plain = frozen("torchvision", "mobilenet_v2")
    images = torch.randn(21, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    built = build_engine(engine, plain, images)
    together = built(images)
    for start, end in ((0, 1), (3, 20), (20, 21), (5, 9)):
        assert torch.equal(built(images[start:end]), together[start:end])


class Moody(nn.Module):
    """Computes something else for bright images, which tracing cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.layer(images)).mean(dim=(2, 3))
        return features * 2 if images[:1].mean() > 1 else features


def test_auto_takes_the_fastest_that_agrees(caplog: pytest.LogCaptureFixture) -> None:
    assert build_engine("auto", frozen("torchvision", "resnet18"), IMAGES).name == "onnx"
    moody = network(Moody())
    mixed = torch.cat([IMAGES + 2, IMAGES])
    with caplog.at_level(logging.INFO):
        assert build_engine("auto", moody, mixed.repeat(4, 1, 1, 1)).name == "eager"
    assert "features.engine=auto leaves folded out: it cannot follow this network" in caplog.text
    assert "features.engine=auto leaves onnx out: it is " in caplog.text


def test_an_engine_that_is_asked_for_and_does_not_agree_is_an_error() -> None:
    mixed = torch.cat([IMAGES[:1], IMAGES + 2]).repeat(8, 1, 1, 1)
    with pytest.raises(
        ModelError, match="away from the network's own features, more than 1e-04. Use features.engine=auto or eager."
    ):
        build_engine("onnx", network(Moody()), mixed)


def test_every_argument_of_a_transform_is_in_its_fingerprint() -> None:
    transforms: list[nn.Module] = [
        v2.Resize(32),
        v2.Resize(33),
        v2.ToDtype(torch.float32),
        v2.ToDtype(torch.float16),
        v2.RandomApply([v2.Resize(32)], p=0.5),
        v2.RandomApply([v2.Resize(32)], p=0.6),
        v2.LinearTransformation(torch.eye(3), torch.zeros(3)),
        v2.LinearTransformation(torch.eye(3), torch.ones(3)),
        v2.RandAugment(magnitude=8),
        v2.RandAugment(magnitude=9),
    ]
    prints = [fingerprint(v2.Compose([transform])) for transform in transforms]
    assert len(set(prints)) == len(transforms)
    assert prints[0] == fingerprint(v2.Compose([v2.Resize(32)]))


def test_what_a_network_computes_is_in_its_digests() -> None:
    one, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)
    other.load_state_dict(one.state_dict())
    assert module_sha256(one) == module_sha256(other)
    assert code_sha256(one) != code_sha256(other)
    assert code_sha256(one) == code_sha256(nn.Conv2d(3, 4, 3))
    other.bias.data[0] += 1e-6
    assert module_sha256(one) != module_sha256(other)
    norm = nn.BatchNorm2d(2)
    before = module_sha256(norm)
    norm.running_mean[1] = 0.5  # type: ignore[index]
    assert module_sha256(norm) != before


def test_the_code_of_a_users_own_class_is_in_the_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "own_network.py"
    code.write_text("from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n        return x\n")
    own, installed = importlib.import_module("own_network").Own(), nn.Conv2d(3, 4, 3)
    digests = [(code_sha256(module), fingerprint(module)) for module in (own, installed)]
    code.write_text(code.read_text().replace("return x", "return 2 * x"))
    assert all(now != before for now, before in zip((code_sha256(own), fingerprint(own)), digests[0], strict=True))
    assert (code_sha256(installed), fingerprint(installed)) == digests[1]
