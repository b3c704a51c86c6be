"""Frozen means frozen: parameters and buffers bit for bit, dropout off, through everything that a Trainer does."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from headstart.models.backbone import build_backbone
from headstart.models.freezing import evaluation_mode, freeze_backbone
from headstart.training.classifier import TransferClassifier
from headstart.utils.errors import ModelError
from tests.helpers.classifiers import quiet_trainer


class Small(nn.Module):
    """BatchNorm, dropout and a parameter of its own, in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.block1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.block2 = nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.block2(self.block1(images * self.scale)))
        return features


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 16, 16, generator=generator) * 3 + 1
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)


def changed(classifier: TransferClassifier, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("freeze", [True, "block1", "block1.1", False])
def test_only_what_is_not_frozen_changes(freeze: bool | str) -> None:
    torch.manual_seed(0)
    classifier = TransferClassifier(Small(), nn.Linear(4, 3), ["a", "b", "c"], freeze=freeze)
    before = copy.deepcopy(classifier.state_dict())
    fit = quiet_trainer(max_epochs=2)
    fit.fit(classifier, loader(), loader())
    fit.validate(classifier, loader(), verbose=False)
    fit.test(classifier, loader(), verbose=False)
    frozen = {
        True: ("scale", "block1.", "block2."),
        "block1": ("scale", "block1."),
        "block1.1": ("scale", "block1.0", "block1.1"),
        False: (),
    }[freeze]
    expected = (
        {
            name
            for name in before
            if name.startswith(("backbone.", "head.")) and not name.removeprefix("backbone.").startswith(frozen)
        }
        if frozen
        else set(before)
    )
    assert changed(classifier, before) == expected


def test_plain_requires_grad_would_not_do() -> None:
    """The trap that this room is for: the test above would notice it."""
    classifier = TransferClassifier(Small(), nn.Linear(4, 3), ["a", "b", "c"], freeze=True)
    classifier.unfreezing.frozen = []
    before = copy.deepcopy(classifier.state_dict())
    classifier.train()
    quiet_trainer(max_epochs=2).fit(classifier, loader())
    assert "backbone.block1.1.running_mean" in changed(classifier, before)


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    classifier = TransferClassifier(Small(), nn.Linear(4, 3), ["a", "b", "c"], freeze="block1")
    for mode in (True, False, True):
        classifier.train(mode)
        assert not any(module.training for module in classifier.backbone.block1.modules())
        assert classifier.backbone.block2.training is mode
        assert classifier.backbone.training is mode  # it holds what trains, too
        assert classifier.head.training is mode


@pytest.mark.parametrize(
    ("backbone", "num_features"),
    [(Small(), 4), (models.convnext_tiny(stochastic_depth_prob=0.9, num_classes=768), 768)],
)
def test_a_frozen_backbone_gives_the_same_features_in_training(backbone: nn.Module, num_features: int) -> None:
    """Dropout and stochastic depth are off, and nothing is kept for a backward pass."""
    classifier = TransferClassifier(backbone, nn.Linear(num_features, 3), ["a", "b", "c"]).train()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(classifier.backbone(images), classifier.backbone(images))
    assert not classifier.backbone(images).requires_grad


def test_each_module_has_its_mode_again_even_after_an_error() -> None:
    backbone = Small().train()
    backbone.block1.eval()
    modes = [module.training for module in backbone.modules()]
    with suppress(RuntimeError), evaluation_mode(backbone):
        assert not any(module.training for module in backbone.modules())
        raise RuntimeError
    assert [module.training for module in backbone.modules()] == modes


def test_the_optimizer_gets_what_trains_and_nothing_else() -> None:
    classifier = TransferClassifier(Small(), nn.Linear(4, 3), ["a", "b", "c"], freeze="block1")
    fit = quiet_trainer(max_epochs=2)
    fit.fit(classifier, loader())
    held = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    trained = {*classifier.backbone.block2.parameters(), *classifier.head.parameters()}
    assert held == {id(p) for p in trained}


@pytest.mark.parametrize(
    ("name", "block", "first_free"),
    [
        ("resnet18", "layer3", "layer4.0.conv1.weight"),
        ("vgg11", "features", "classifier.0.weight"),
        ("vit_b_16", "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2.ln_1.weight"),
        ("mobilenet_v2", "features.17", "features.18.0.weight"),
        ("convnext_tiny", "features.5", "features.6.0.weight"),
    ],
)
def test_blocks_are_frozen_up_to_and_including_the_one_named(name: str, block: str, first_free: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone("torchvision", name, None).module
        freeze_backbone(backbone, block)
    names = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert names[0] == first_free
    every = [n for n, _ in backbone.named_parameters()]
    assert names == every[every.index(first_free) :]


def test_an_unknown_block_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match="freeze=block3: the backbone has no such block. Did you mean 'block"):
        freeze_backbone(Small(), "block3")
    with pytest.raises(ModelError, match="Its blocks are block1, block2, pool, and those within them"):
        freeze_backbone(Small(), "nothing_like_it")
