"""How a backbone is fine-tuned: which of its blocks train when, at which rates, and that resuming changes nothing."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file
from torch import Tensor, nn

from headstart.config.presets import finetune_preset
from headstart.models.backbone import build_backbone
from headstart.models.blocks import blocks_of
from headstart.models.freezing import freeze_backbone
from headstart.models.small_networks import GlyphNet
from headstart.models.unfreezing import Finetuning, ParameterGroup, Unfreezing
from headstart.training.distributed import check_strategy
from headstart.training.optimization import build_optimizer
from headstart.utils.errors import ConfigError, ModelError
from tests.helpers.commands import command
from tests.helpers.runs import (
    DIGITS,
    FEW,
    SMALL,
    Train,
    choices,
    composed,
    findings,
    interrupt_after,
    read_metrics,
    recorded,
)
from tests.helpers.trainers import fitted
from tests.helpers.watch import check_same

STRATEGIES = [name for name in choices("finetune") if name not in ("none", "auto")]
# An epoch of the head alone where a preset has it fitted, which is done before the Trainer begins.
HEAD_FIRST: dict[str, Any] = {name: {"head_epochs": 1} for name in ("head_then_full", "gradual")}
QUICK = ("augment=flip", "head=mlp", "scheduler=cosine", "optimizer=adamw", "lr=3e-3", *FEW)


# --- blocks --------------------------------------------------------------------------------------------------

NETWORKS = {
    ("torchvision", "resnet18"): (9, "bn1", "layer4.1"),
    ("torchvision", "resnet50"): (17, "bn1", "layer4.2"),
    ("torchvision", "vgg16_bn"): (15, "features.1", "classifier.3"),
    ("torchvision", "vit_b_16"): (13, "conv_proj", "encoder.ln"),
    ("torchvision", "swin_t"): (16, "features.0", "norm"),
    ("torchvision", "convnext_tiny"): (22, "features.0", "classifier"),
    ("torchvision", "mobilenet_v2"): (19, "features.0", "features.18"),
    ("torchvision", "efficientnet_v2_s"): (42, "features.0", "features.7"),
    ("torchvision", "shufflenet_v2_x1_0"): (18, "conv1", "conv5"),
    ("torchvision", "squeezenet1_0"): (9, "features.0", "features.12"),
    ("timm", "resnet18"): (9, "bn1", "layer4.1"),
    ("timm", "vit_tiny_patch16_224"): (13, "patch_embed", "norm"),
    ("timm", "convnext_atto"): (16, "stem", "head"),
    ("timm", "regnety_004"): (17, "stem", "s4.b6"),
    ("timm", "mixer_s32_224"): (9, "stem", "norm"),
}


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_blocks_of_any_network(library: str, name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(library, name, None).module
        blocks = blocks_of(backbone)
    assert (len(blocks), blocks[0].name, blocks[-1].name) == NETWORKS[library, name]
    # Every parameter is in one block, and freezing up to a block freezes it and those in front of it.
    assert sorted(p for block in blocks for p in block.parameters) == sorted(n for n, _ in backbone.named_parameters())
    for index in (0, len(blocks) // 2, len(blocks) - 1):
        backbone.requires_grad_()
        freeze_backbone(backbone, blocks[index].name)
        frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for block in blocks[: index + 1] for name in block.parameters}


# --- when, and how fast --------------------------------------------------------------------------------------


def test_what_trains_when() -> None:
    plain, head_first = Finetuning(), Finetuning(head_epochs=2)
    gradual = Finetuning(head_epochs=1, unfrozen_by=0.5)
    assert [plain.unfrozen(7, epoch, 10) for epoch in range(3)] == [7, 7, 7]
    assert [head_first.unfrozen(7, epoch, 10) for epoch in range(4)] == [0, 0, 7, 7]
    assert [gradual.unfrozen(7, epoch, 10) for epoch in range(7)] == [0, 2, 3, 5, 6, 7, 7]
    late = Finetuning(head_epochs=6, unfrozen_by=0.5)  # of the four that are left
    assert [late.unfrozen(7, epoch, 10) for epoch in range(5, 10)] == [0, 4, 7, 7, 7]
    assert [gradual.unfrozen(7, epoch, 3) for epoch in range(3)] == [0, 7, 7]  # few epochs: it hurries
    assert [Finetuning(unfrozen_by=1.0).unfrozen(2, epoch, 4) for epoch in range(4)] == [1, 1, 2, 2]


def test_rates_fall_from_the_head_down() -> None:
    unfreezing = Unfreezing(GlyphNet(), "stem", Finetuning(backbone_lr=0.1, layer_decay=0.5))
    groups = unfreezing.parameter_groups(nn.Linear(416, 2))
    names = [group.name for group in groups]
    assert names == ["head", "block3.1", "block3.0", "block2.1", "block2.0", "block1.1", "block1.0"]  # no stem
    assert [group.rate for group in groups] == pytest.approx([1, *(0.1 * 0.5**depth for depth in range(1, 7))])
    fitted = unfreezing.parameter_groups(nn.Linear(416, 2), fitted=True)
    assert [group.rate for group in fitted] == pytest.approx([0.1, *(group.rate for group in groups[1:])])
    (group,) = Unfreezing(GlyphNet(), False, Finetuning()).parameter_groups(nn.Linear(416, 2))
    assert (group.name, group.rate) == ("all", 1.0)


def test_norms_and_biases_do_not_decay() -> None:
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    group = ParameterGroup("block", [*layer.parameters(), *norm.parameters()], 0.5)
    for name, settings in {"adam": {}, "adamw": {}, "sgd": {"momentum": 0.9, "nesterov": True}}.items():
        decayed, others = build_optimizer([group], name, lr=0.1, weight_decay=0.02, **settings).param_groups
        assert [id(p) for p in decayed["params"]] == [id(layer.weight)]
        assert {id(p) for p in others["params"]} == {id(p) for p in (layer.bias, norm.weight, norm.bias)}
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.02, 0.0)
        assert (decayed["lr"], others["lr"]) == (0.05, 0.05)
        assert len(build_optimizer([group], name, lr=0.1, **settings).param_groups) == 1  # nothing decays


def test_what_a_network_itself_never_trains_stays_frozen() -> None:
    """As the fixed position embeddings of some vision transformers."""
    backbone = GlyphNet()
    backbone.block2[0][0].weight.requires_grad_(False)
    unfreezing = Unfreezing(backbone, False, Finetuning(head_epochs=1))
    unfreezing.begin_epoch(1, 2)
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == ["block2.0.0.weight"]


# --- whole runs ----------------------------------------------------------------------------------------------


PRESETS = {name: Finetuning(**finetune_preset(name) | HEAD_FIRST.get(name, {})) for name in STRATEGIES}


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_at_any_epoch_is_the_same_as_uninterrupted(name: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"head_then_full": {"ema": 0.9, "mixes": True}, "gradual": {"ema": 0.9}}.get(name, {})
    _, whole = fitted(tmp_path / "whole", PRESETS[name], **more)
    for epoch in (1, 2, 3):
        last = whole.folder / f"before{epoch}" / "last.ckpt"
        _, rest = fitted(tmp_path / f"rest{epoch}", PRESETS[name], resumed=last, **more)
        check_same(rest, whole, range(epoch, 4))


@pytest.mark.parametrize("name", ["full", "head_then_full"])
def test_resumed_with_workers_it_is_the_same_too(name: str, tmp_path: Path) -> None:
    """They begin with the images of the epoch that is resumed, not of the first one."""
    _, whole = fitted(tmp_path / "whole", PRESETS[name], epochs=3, workers=1)
    for epoch in (1, 2):
        last = whole.folder / f"before{epoch}" / "last.ckpt"
        _, rest = fitted(tmp_path / f"rest{epoch}", PRESETS[name], epochs=3, workers=1, resumed=last)
        check_same(rest, whole, range(epoch, 3))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_trains_what_its_strategy_says_and_resumes_as_if_it_had_run_on(
    name: str, train: Train, tmp_path: Path
) -> None:
    """What is frozen stays bit for bit, its buffers too; while the head trains alone, on cached features."""
    overrides = (*QUICK, f"finetune={name}", "model.weights=default", "epochs=4")
    whole, metrics = recorded(train, *overrides, folder=tmp_path / "whole")
    start = build_backbone("headstart", "glyphnet", "default").module.state_dict()
    modules = sorted({name.rpartition(".")[0] for name in start})
    trained = {}
    for epoch in range(4):
        moved = {n for n, v in start.items() if not torch.equal(whole.states[epoch][f"backbone.{n}"], v)}
        trains = {n.removeprefix("backbone.") for n in whole.trains[epoch]}
        for module in modules:  # its buffers with its parameters
            of_module = {n for n in start if n.rpartition(".")[0] == module}
            assert bool(of_module & moved) == bool(of_module & trains), (epoch, module)
        trained[epoch] = len(trains & start.keys())
    every = len(list(build_backbone("headstart", "glyphnet", None).module.parameters()))
    upper = sum(len(block.parameters) for block in blocks_of(GlyphNet())[3:])
    norms = 14
    assert (
        trained
        == {
            "full": {0: every, 1: every, 2: every, 3: every},
            "head_then_full": {0: 0, 1: every, 2: every, 3: every},
            "gradual": {0: 0, 1: upper, 2: every, 3: every},
            "layer_decay": {0: every, 1: every, 2: every, 3: every},
            "bn_frozen": dict.fromkeys(range(4), every - norms),
        }[name]
    )
    sizes = {n: p.numel() for n, p in build_backbone("headstart", "glyphnet", None).module.named_parameters()}
    head = (416 + 1) * 256 + (256 + 1) * 10
    assert metrics["params/trainable"] == head + sum(size for n, size in sizes.items() if n in trains)

    last = whole.folder / "before2" / "last.ckpt"
    rest, again = recorded(train, *overrides, f"ckpt_path={last}", folder=tmp_path / "rest")
    check_same(rest, whole, range(2, 4))
    assert findings(again) == findings(metrics)


@pytest.mark.parametrize("override", ["data.cache=none", "data.cache=decoded"])
def test_while_the_head_trains_alone_the_backbone_does_not_run(
    override: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.training.classifier import TransferClassifier

    seen: dict[int, int] = {}
    forward = TransferClassifier.forward

    def counted(self: TransferClassifier, images: Tensor) -> Tensor:
        if self.trainer.state.fn == "fit":
            seen[self.current_epoch] = seen.get(self.current_epoch, 0) + len(images) * (images.ndim == 4)
        return forward(self, images)

    monkeypatch.setattr(TransferClassifier, "forward", counted)
    overrides = ("finetune=head_then_full", "finetune.head_epochs=3", "epochs=5", "data.train_per_class=4", override)
    metrics = train(*overrides, "model.weights=default", "augment=flip")
    train_and_val = 40 + metrics["data/val_size"]
    assert seen == {0: 0, 1: 0, 2: 0, 3: train_and_val, 4: train_and_val}
    assert metrics["features/computed"] + metrics["features/cached"] == 3 * 40 + metrics["data/val_size"]  # three views
    seen.clear()
    train(*overrides, "model.weights=default", "features=off", folder=tmp_path / "off")
    assert set(seen.values()) == {train_and_val}


def test_a_head_first_trained_on_features_is_that_of_the_network(train: Train, tmp_path: Path) -> None:
    overrides = (*QUICK[1:], "finetune=head_then_full", "finetune.head_epochs=2", "model.weights=default", "epochs=4")
    cached, metrics = recorded(train, *overrides, folder=tmp_path / "cached")
    uncached, others = recorded(train, *overrides, "features=off", folder=tmp_path / "uncached")
    for epoch in range(4):
        states = cached.states[epoch], uncached.states[epoch]
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4 if epoch < 2 else 1e-2)
        assert cached.rates[epoch] == uncached.rates[epoch]
    assert metrics["test/accuracy"] == pytest.approx(others["test/accuracy"], abs=0.01)


def test_early_stopping_counts_from_where_everything_trains(train: Train, tmp_path: Path) -> None:
    """No epoch is an improvement by ten here."""
    impatient = ("callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=10")
    overrides = ("finetune=gradual", "finetune.head_epochs=2", "epochs=9", *FEW, *impatient)
    assert train(*overrides)["epochs/run"] == 2 + 4  # the head's, and until all has unfrozen, which is no better
    frozen = train("freeze=true", "epochs=9", *FEW, *impatient, folder=tmp_path / "frozen")
    assert frozen["epochs/run"] == 2


def test_a_loss_that_is_not_finite_ends_a_run_before_anything_unfreezes(train: Train) -> None:
    overrides = ("finetune=head_then_full", "finetune.head_epochs=3", "epochs=4", *FEW)
    overrides = (*overrides, "model.weights=default", "monitor=val/loss", "optimizer=sgd", "lr=1e38")
    assert train(*overrides)["epochs/run"] < 3


def test_a_head_may_train_first_above_blocks_that_stay_frozen(train: Train) -> None:
    assert train("finetune=head_then_full", "freeze=block3.1", "epochs=3", *FEW)["epochs/run"] == 3


def test_a_head_that_auto_trains_alone_has_one_schedule(train: Train, tmp_path: Path) -> None:
    """Whatever is set beside it for what would unfreeze."""
    overrides = ("finetune=auto", "finetune.head_epochs=2", "scheduler=cosine", "epochs=4", "data.train_per_class=20")
    record, _ = recorded(train, *overrides, "model.weights=default", folder=tmp_path / "run")
    assert not any(name.startswith("backbone") for name in record.trains[3])
    rates = [record.rates[epoch][0] for epoch in range(4)]
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_blocks_unfreeze_one_after_the_other(train: Train, tmp_path: Path) -> None:
    overrides = ("finetune=gradual", "finetune.unfrozen_by=1.0", "epochs=5", "freeze=stem")
    record, _ = recorded(train, *QUICK, *overrides, folder=tmp_path / "run")
    lowest = [
        min((n.removeprefix("backbone.") for n in record.trains[epoch] if n.startswith("backbone.")), default="")
        for epoch in range(5)
    ]
    assert [name[:8] for name in lowest] == ["", "block3.0", "block2.1", "block1.1", "block1.0"]
    falling = record.rates[4]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("override", ["freeze=true", "freeze=block1", "finetune=bn_frozen"])
def test_what_is_frozen_is_bit_identical_in_an_average_of_weights(override: str, train: Train, tmp_path: Path) -> None:
    metrics = train(override, "callbacks.ema=0.9", "features=off", "model.weights=default", "epochs=3", *FEW)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    start = build_backbone("headstart", "glyphnet", "default").module.state_dict()
    moved = {n for n, value in start.items() if not torch.equal(saved[f"backbone.{n}"], value)}
    assert bool(moved) == (override != "freeze=true")
    assert not any(n.startswith(("stem", "block1")) for n in moved) or override == "finetune=bn_frozen"
    assert not any("running" in n for n in moved) or override == "freeze=block1"
    assert metrics["epochs/run"] == 3


def test_an_average_that_is_resumed_at_its_end_stays_one(train: Train, tmp_path: Path) -> None:
    """Without the best checkpoint, too, which would be restored."""
    overrides = ("freeze=false", "callbacks.ema=0.9", "callbacks.checkpoint=false", "epochs=2", *FEW)
    train(*overrides[:2], *overrides[3:], folder=tmp_path / "whole")
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    train(*overrides, f"ckpt_path={last}", folder=tmp_path / "again")
    average = torch.load(last, weights_only=True)["state_dict"]
    saved = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in saved.items())


def test_what_unfreezes_is_compiled_at_every_stage(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch recompiles a network for other gradients, and no more beyond a limit."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    try:
        train("finetune=gradual", "compile=true", "epochs=8", *FEW)
    finally:
        torch.compiler.reset()


def test_resumed_when_all_epochs_have_run_it_counts_what_trained(train: Train, tmp_path: Path) -> None:
    overrides = ("finetune=head_then_full", "epochs=2", *FEW)
    whole = train(*overrides, folder=tmp_path / "whole")
    again = train(*overrides, f"ckpt_path={tmp_path}/whole/checkpoints/last.ckpt", folder=tmp_path / "again")
    assert findings(again) == findings(whole)


def test_a_schedule_of_other_steps_is_not_resumed(train: Train, tmp_path: Path) -> None:
    overrides = ("finetune=full", "scheduler=onecycle", "data.train_per_class=6", "epochs=3")
    interrupt_after(1, *overrides, folder=tmp_path / "part")
    last = f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt"
    with pytest.raises(ModelError, match="images_a_step=32, and this run's is .* images_a_step=8"):
        train(*overrides, "batch_size=8", last)
    with pytest.raises(ModelError, match="images_a_step=32, and this run's is .* images_a_step=64"):
        train(*overrides, "trainer.accumulate_grad_batches=2", last)


def test_a_schedule_of_other_epochs_is_not_resumed(train: Train, tmp_path: Path) -> None:
    overrides = ("finetune=gradual", *FEW)
    interrupt_after(1, *overrides, "epochs=4", folder=tmp_path / "part")
    last = f"ckpt_path={tmp_path}/part/checkpoints/last.ckpt"
    with pytest.raises(ModelError, match="cannot be resumed: its scheduler is name=none epochs=4"):
        train(*overrides, "epochs=6", last)
    with pytest.raises(ModelError, match="cannot be resumed: its finetune is head_epochs=0 unfrozen_by=0.5"):
        train("finetune=layer_decay", *FEW, "epochs=4", last)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("finetune=gradual", "freeze=true"),
            "freeze=true trains the head alone, and finetune=gradual the backbone",
        ),
        (
            ("finetune=head_then_full", "finetune.head_epochs=1", "epochs=1"),
            "finetune.head_epochs=1: the backbone never unfreezes in epochs=1",
        ),
        (("finetune.backbone_lr=0.1",), "finetune.backbone_lr: freeze=true trains the head alone"),
        (("finetune=auto", "freeze=stem"), "finetune=auto decides what is frozen: leave freeze=stem out"),
        (("finetune=auto", "model.weights=null"), "finetune=auto looks at the images with pretrained weights"),
        (("data.sampling=balanced", "loss.class_weights=balanced"), "would weigh the smaller classes twice"),
        (("freeze=false", "finetune.unfrozen_by=1.5"), r"finetune.unfrozen_by=1.5: expected a number from 0 to 1"),
        (("freeze=false", "finetune.layer_decay=0"), "finetune.layer_decay=0.0: expected a number above 0"),
        (("freeze=false", "finetune.batchnorm=off"), "finetune.batchnorm"),
    ],
)
def test_what_cannot_be_meant(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_strategies_of_lightning_that_cannot_unfreeze_are_refused() -> None:
    with pytest.raises(ConfigError, match="works with auto or ddp, not with FSDPStrategy. Choose one of them, or"):
        check_strategy(FSDPStrategy())


def test_what_unfreezes_is_trained_by_all_processes(tmp_path: Path) -> None:
    """Two processes with 8 images a step each are one with 16; PyTorch alone would not average what unfreezes later."""
    overrides = ("finetune=head_then_full", "finetune.head_epochs=1", "finetune.batchnorm=frozen", "optimizer=sgd")
    overrides = (*overrides, "finetune.backbone_lr=1.0")
    small = ("lr=0.01", "epochs=2", "data.train_per_class=8", "trainer.accelerator=cpu", *SMALL[2:], *DIGITS)
    for name, more in {"one": ("batch_size=16",), "two": ("batch_size=8", "trainer=ddp")}.items():
        result = command(*more, *overrides, *small, f"hydra.run.dir={tmp_path / name}")
        assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-4)
    start = build_backbone("headstart", "glyphnet", "default").module.state_dict()
    assert not torch.equal(two["state_dict"]["backbone.stem.0.weight"], start["stem.0.weight"])
    assert read_metrics(tmp_path / "two")["epochs/run"] == 2
