"""On a GPU: features of a frozen backbone, and heads fitted to them, are those of the CPU but for rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.checks.feature_reader import open_reader
from headstart.checks.features import feature_findings
from headstart.checks.table import image_table
from headstart.cross_validation.run import run
from headstart.data.build import open_images
from headstart.data.preprocessing import evaluation_transform
from headstart.training.fitted_head.fit import fit_at_once, fit_dtype
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.path import PATH_DTYPE, best_point, inner_folds, weight_decay_path
from headstart.training.fitted_head.rows import TrainingRows, spectrum_of
from tests.helpers.checked import scene
from tests.helpers.runs import (
    FEW,
    RESNET18,
    SIZE,
    SMALL,
    Train,
    composed,
    interrupt_after,
    read_metrics,
    small,
    weights,
)
from tests.helpers.session import Once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
LBFGS = ("optimizer=lbfgs", "model.weights=default")
GLYPHNET = ("model.weights=default",)
VIT = ("model=timm", "model.name=tiny_vit", *SIZE)


def on_gpu(precision: str = "32-true") -> tuple[str, str]:
    return "trainer=gpu", f"trainer.precision={precision}"


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# --- features --------------------------------------------------------------------------------------------------------


def features(*overrides: str, split: str = "val") -> tuple[Tensor, Tensor]:
    """Return features and labels of a split of the default's digits, from the cache or computed."""
    config = composed(*small(*overrides))
    reader, samples = open_reader(config), open_images(config.data).splits[split]
    data = reader.read({"train": samples}, evaluation_transform(reader.backbone.preprocessing))
    assert data.training_table.features is not None
    return data.training_table.features, data.training_table.labels


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("network", [GLYPHNET, RESNET18, VIT], ids=["glyphnet", "resnet18", "tiny_vit"])
def test_cached_features_are_those_of_the_cpu(network: tuple[str, ...]) -> None:
    """Convolutions compute in TensorFloat-32 with 32-true, as PyTorch has it: 10 bits, as float16; bfloat16 has 7."""
    expected, _ = features(*network)
    for precision, bound in zip(PRECISIONS, (2e-3, 5e-3, 3e-2), strict=True):
        computed, _ = features(*network, *on_gpu(precision))
        assert (computed.device.type, computed.dtype) == ("cuda", torch.float32)
        assert relative_difference(computed.cpu(), expected) < bound
        assert torch.equal(features(*network, *on_gpu(precision))[0], computed), "from the cache"


def test_the_check_of_features_finds_what_it_finds_on_a_cpu(tmp_path: Path) -> None:
    for seed in range(40):
        path = tmp_path / "train" / ("even", "odd")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(seed, (64, 64)).save(path)
    scene(8, (64, 64)).save(tmp_path / "train" / "odd" / "copy.jpg")
    words = (*SMALL, *RESNET18, "data=imagefolder", f"data.root={tmp_path}")

    def near(*overrides: str) -> list[tuple[str, str, str]]:
        config = composed(*words, *overrides)
        found = feature_findings(config, image_table(open_images(config.data)), [], tested=True).findings
        return [(each.kind, each.image, each.other) for each in found if each.kind.startswith("near")]

    assert ("near_conflict", "train/odd/copy.jpg", "train/even/8.png") in near()
    assert near(*on_gpu()) == near(*on_gpu("bf16-mixed")) == near()


# --- fitted heads ----------------------------------------------------------------------------------------------------


def overlapping(rows: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return features like those of networks, not negative and of different scales, and labels that they half tell."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    noise = 3 * torch.randn(rows, width, generator=generator)
    return (centres[labels] + noise).relu() * torch.linspace(0.1, 2, width), labels


def fitted(features: Tensor, labels: Tensor, precision: float | None = None) -> tuple[nn.Linear, float, int]:
    """Return a head that is fitted on the device of its features, the prior's precision, and the passes of the fit."""
    device, dtype = features.device, fit_dtype(features.device)
    classes = int(labels.max()) + 1
    rows = TrainingRows(lambda numbers: features[numbers.to(device)], labels, dtype)
    spectrum, loss = spectrum_of(rows), Loss(torch.ones(classes, dtype=dtype, device=device))
    folds = torch.from_numpy(inner_folds(labels.cpu().numpy(), None)).to(device)
    folded = FoldedRows(rows, spectrum, folds, PATH_DTYPE)
    chosen = precision or best_point(weight_decay_path(folded, loss)).precision
    head = nn.Linear(features.shape[1], classes, dtype=dtype, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    passes = fit_at_once(rows, spectrum, head, loss, chosen / len(labels))
    return head, chosen, passes


@pytest.mark.parametrize(
    ("rows", "width", "classes", "precision"), [(5_000, 256, 20, None), (100, 416, 10, 1.0)], ids=["many", "few"]
)
def test_a_head_in_float32_answers_as_the_cpu_does_in_float64(
    rows: int, width: int, classes: int, precision: float | None
) -> None:
    features, labels = overlapping(rows, width, classes)
    expected, best, passes = fitted(features, labels, precision)
    head, chosen, on_gpu = fitted(features.cuda(), labels.cuda(), precision)
    assert chosen == best
    assert on_gpu <= 2 * passes, "rounding does not let it wander"
    check_answers(head.weight, head.bias, expected, features)


def check_answers(weight: Tensor, bias: Tensor, expected: nn.Linear, features: Tensor) -> None:
    """Check that a head answers as one in float64 does, in log probabilities: all logits may be shifted alike."""
    values = features.double()
    theirs = expected(values).detach().log_softmax(dim=1)
    ours = F.linear(values, weight.detach().cpu().double(), bias.detach().cpu().double()).log_softmax(dim=1)
    assert float((ours.exp() - theirs.exp()).abs().max()) < 2e-3
    assert relative_difference(ours, theirs) < 2e-3
    assert (ours.argmax(dim=1) == theirs.argmax(dim=1)).double().mean() > 0.999


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_fits_the_head_that_it_fits_on_a_cpu(precision: str, train: Train, made_once: Once) -> None:
    expected = read_metrics(made_once("lbfgs on a cpu/run", lambda folder: train(*LBFGS, folder=folder)))
    metrics = train(*LBFGS, *on_gpu(precision))
    assert abs(metrics["test/accuracy"] - expected["test/accuracy"]) <= 2 / metrics["data/test_size"]
    assert metrics["test/loss"] == pytest.approx(expected["test/loss"], rel=0.05)
    assert metrics["epochs/run"] <= 2 * expected["epochs/run"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_fits_in_float32_whatever_the_precision_of_its_features(
    precision: str, train: Train, tmp_path: Path
) -> None:
    """The weight decay is given, and one at which the optimum is far from flat: answers then differ by rounding."""
    train(*LBFGS, *on_gpu(precision), "optimizer.weight_decay=0.01")
    rows, labels = (part.cpu() for part in features(*LBFGS, *on_gpu(precision), split="train"))
    head, _, _ = fitted(rows, labels, precision=0.01 * len(labels))
    ours = weights(tmp_path / "run")
    check_answers(ours["head.weight"], ours["head.bias"], head, rows)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_folds_have_the_answers_that_they_have_on_a_cpu(precision: str, tmp_path: Path, made_once: Once) -> None:
    words = (*SMALL, *LBFGS, "folds=3", "data.train_per_class=null")
    expected = read_metrics(made_once("folds on a cpu/run", lambda folder: run(composed(*words), folder)))
    run(composed(*words, *on_gpu(precision)), tmp_path)
    metrics = read_metrics(tmp_path)
    assert metrics["out_of_fold/accuracy"] == pytest.approx(expected["out_of_fold/accuracy"], abs=3 / 1797)
    assert metrics["out_of_fold/loss"] == pytest.approx(expected["out_of_fold/loss"], rel=0.05)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_fit_that_was_cut_off_ends_as_one_that_was_not(precision: str, train: Train, tmp_path: Path) -> None:
    settings = (*LBFGS, *on_gpu(precision), *FEW)
    whole = train(*settings, folder=tmp_path / "whole")
    interrupt_after(3, *settings, folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    rest = train(*settings, f"ckpt_path={last}", folder=tmp_path / "rest")
    assert rest["test/accuracy"] == whole["test/accuracy"]
    ours, theirs = (weights(tmp_path / name)["head.weight"] for name in ("rest", "whole"))
    assert relative_difference(ours, theirs) < 5e-3
