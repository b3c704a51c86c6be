"""On a GPU: networks train in every precision, and what they leave is as good without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import headstart
from headstart.inference.evaluate import evaluate
from headstart.training import profiler as training_profiler
from headstart.training.checkpoints import load_checkpoint
from tests.helpers.runs import FEW, TINY_RESNET, Train, interrupt_after, read_metrics, tensors, weights
from tests.helpers.session import Once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

WHOLE = ("freeze=false", "model.weights=default", "lr=1e-3")  # all of the pretrained network is trained
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def on_gpu(precision: str = "32-true") -> tuple[str, str]:
    return "trainer=gpu", f"trainer.precision={precision}"


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_learns_in_every_precision(
    precision: str, train: Train, made_once: Once, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*WHOLE, "epochs=3")
    on_cpu = read_metrics(made_once("trained on a cpu/run", lambda folder: train(*words, folder=folder)))
    metrics = train(*words, *on_gpu(precision))
    assert metrics["test/accuracy"] == pytest.approx(on_cpu["test/accuracy"], abs=0.08)
    assert {value.dtype for value in weights(tmp_path / "run").values() if value.is_floating_point()} == {torch.float32}
    assert "diverged" not in caplog.text


@pytest.mark.parametrize(("precision", "bound"), [("32-true", 2e-3), ("16-mixed", 5e-3), ("bf16-mixed", 3e-2)])
def test_what_a_gpu_has_trained_answers_the_same_without_one(
    precision: str, bound: float, train: Train, tmp_path: Path
) -> None:
    """But for the rounding of TensorFloat-32, which convolutions compute in on a GPU, float16 or bfloat16."""
    metrics = train(*WHOLE, "epochs=2", *on_gpu(precision))
    here, elsewhere = evaluate(tmp_path / "run"), evaluate(tmp_path / "run", "trainer=cpu")
    assert here.metrics["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-3)
    assert elsewhere.metrics["test/loss"] == pytest.approx(metrics["test/loss"], rel=10 * bound)
    assert relative_difference(elsewhere.outputs.logits, here.outputs.logits) < bound
    assert (elsewhere.predicted == here.predicted).mean() > 0.98
    images = torch.rand(8, 3, 40, 36)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        cpu, gpu = (headstart.load(path, device=device) for device in ("cpu", "cuda"))
        ours, theirs = (torch.cat(list(model.logits_each(list(images)))) for model in (gpu, cpu))
        assert relative_difference(ours, theirs) < 2e-3
        assert headstart.load(path).device.type == "cuda", "a GPU is taken where there is one"


def test_fine_tuning_with_everything_that_computes_on_the_device(train: Train, hard: Path, tmp_path: Path) -> None:
    words = (
        *("data=imagefolder", f"data.root={hard}", "model.weights=default", "data.num_workers=2", "report=true"),
        *("finetune=head_then_full", "optimizer=adamw", "lr=1e-3", "scheduler=cosine", "epochs=4", "head=mlp"),
        *("augment=standard", "augment.random_erasing=0.2", "loss.mixup=0.2", "loss.cutmix=1.0"),
        *("loss.label_smoothing=0.1", "loss.class_weights=balanced", "callbacks.ema=0.9"),
        *("trainer.gradient_clip_val=1.0", "finetune.head_epochs=1"),
    )
    for precision in ("16-mixed", "bf16-mixed"):
        metrics = train(*words, *on_gpu(precision), folder=tmp_path / precision)
        assert metrics["epochs/run"] == 4
        assert metrics["val/accuracy"] > 0.5, "a third of the images are of each class"
        assert (tmp_path / precision / "report" / "index.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("finetune=head_then_full", "finetune.head_epochs=auto"),
        ("finetune=gradual", "finetune.head_epochs=auto"),
        ("finetune=layer_decay", "optimizer=sgd", "lr=3e-2"),
        ("finetune=auto", "lr=auto"),
        ("freeze=true", "augment=flip", "optimizer=adam", "head=mlp", "lr=auto", "epochs=8"),
    ],
    ids=" ".join,
)
def test_every_strategy_trains(words: tuple[str, ...], train: Train, hard: Path) -> None:
    data = ("data=imagefolder", f"data.root={hard}", "model.weights=default", "epochs=4")
    metrics = train(*data, "lr=3e-3", *words, *on_gpu("bf16-mixed"))
    assert metrics["val/accuracy"] > 0.5, "a third of the images are of each class"


def test_a_compiled_run_has_the_checkpoints_of_one_that_is_not(train: Train, tmp_path: Path) -> None:
    words = (*WHOLE, "epochs=1", *FEW, *on_gpu())
    eager = train(*words, folder=tmp_path / "eager")
    compiled = train(*words, "compile=true", folder=tmp_path / "compiled")
    assert compiled["val/loss"] == pytest.approx(eager["val/loss"], rel=0.05)  # sums are in another order
    expected, state = tensors(tmp_path / "eager"), tensors(tmp_path / "compiled")
    assert list(state) == list(expected)
    load_checkpoint(tmp_path / "compiled" / "checkpoints" / "best.ckpt")
    again = evaluate(tmp_path / "compiled", "trainer=cpu")
    assert again.metrics["test/loss"] == pytest.approx(compiled["test/loss"], rel=1e-2)


DETERMINISTIC = (
    ("freeze=false", "epochs=2", "lr=1e-2", "data.train_per_class=20", *TINY_RESNET),
    ("optimizer=lbfgs", "model.weights=default", "loss.class_weights=balanced"),
)


@pytest.mark.parametrize("words", DETERMINISTIC, ids=["resnet", "lbfgs"])
def test_deterministic_runs_are_the_same_bit_for_bit(words: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(*words, *on_gpu(), "trainer.deterministic=true", folder=tmp_path / name)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_batch_size_is_found_and_recorded(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(*WHOLE, "batch_size=auto", "epochs=1", "data.train_per_class=null", *on_gpu("bf16-mixed"))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["batch_size"] in (8, 16, 32, 64)  # 1617 images, and 20 steps an epoch
    assert "images per second: " in caplog.text


def test_times_add_up_and_the_verdict_names_a_remedy(
    train: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_profiler, "SHORT_S", 0)
    caplog.set_level("INFO")
    metrics = train(*WHOLE, "epochs=2", *on_gpu(), "model=resnet18", "model.weights=null")
    fractions = [metrics[f"time/{name}"] for name in ("waiting", "transfer", "compute")]
    assert min(fractions) >= 0
    assert sum(fractions) == pytest.approx(1, abs=1e-3)
    (line,) = [line for line in caplog.messages if line.startswith("speed: ")]
    assert " images/s; " in line


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_that_was_cut_off_goes_on(precision: str, train: Train, tmp_path: Path) -> None:
    settings = (*WHOLE, "epochs=4", "scheduler=cosine", *on_gpu(precision))
    whole = train(*settings, folder=tmp_path / "whole")
    interrupt_after(2, *settings, folder=tmp_path / "part")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    rest = train(*settings, f"ckpt_path={last}", folder=tmp_path / "rest")
    assert rest["epochs/run"] == whole["epochs/run"] == 4
    ours, theirs = (tensors(tmp_path / name) for name in ("rest", "whole"))
    assert all(relative_difference(ours[name].float(), theirs[name].float()) < 0.05 for name in ("head.weight",))
    assert rest["test/accuracy"] == pytest.approx(whole["test/accuracy"], abs=0.05)
