"""Heads fitted by L-BFGS: their optimum, the choice of weight decay, and runs with optimizer=lbfgs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

import headstart
from headstart.training.fitted_head.fit import HeadFit
from headstart.training.fitted_head.folded_rows import FoldedRows
from headstart.training.fitted_head.objective import Loss
from headstart.training.fitted_head.path import (
    PATH_DTYPE,
    PRECISIONS,
    best_point,
    fit_folds,
    inner_folds,
    weight_decay_path,
)
from headstart.training.fitted_head.rows import LARGEST_EIGENPROBLEM, Spectrum, TrainingRows, spectrum_of
from headstart.utils.errors import ConfigError
from tests.helpers.commands import command
from tests.helpers.runs import (
    DIGITS,
    FEW,
    SMALL,
    Train,
    composed,
    figures,
    findings,
    interrupt_after,
    read_metrics,
    tensors,
)


def planted(rows: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features whose scales and means differ by orders of magnitude, and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=generator)
    logits = features @ torch.randn(width, classes, generator=generator) / width**0.5
    noisy = logits + torch.randn(rows, classes, generator=generator)
    scale = 10 ** torch.linspace(-2, 1, width)
    return features * scale + 5 * scale, noisy.argmax(dim=1)


def fit_head(
    features: Tensor, labels: Tensor, weight_decay: float, loss: Loss, *, block: int = 1000
) -> tuple[nn.Linear, HeadFit]:
    """Fit a float64 head from zero, adding rows in blocks."""
    rows = TrainingRows(lambda numbers: features[numbers], labels, torch.float64)
    fit = HeadFit(rows, spectrum_of(rows), loss, weight_decay)
    head = nn.Linear(features.shape[1], len(loss.class_weights), dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    fit.start(head)
    for _ in range(1000):
        for start in range(0, len(labels), block):
            fit.add(features[start : start + block], labels[start : start + block])
        fit.step(lambda tensor: tensor)
        if fit.converged:
            break
    assert fit.converged
    fit.write(head, evaluated=True)
    return head, fit


def unweighted(classes: int) -> Loss:
    return Loss(torch.ones(classes, dtype=torch.float64))


def standardized(features: Tensor) -> Tensor:
    values = features.double()
    return (values - values.mean(dim=0)) / values.std(dim=0, correction=0)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("rows", "width", "classes"), [(300, 20, 2), (300, 20, 5), (40, 60, 3)])
def test_the_optimum_is_that_of_scikit_learn(rows: int, width: int, classes: int, weighted: bool) -> None:
    features, labels = planted(rows, width, classes)
    weights = torch.linspace(0.5, 2, classes, dtype=torch.float64) if weighted else torch.ones(classes).double()
    precision = 3.0
    head, _ = fit_head(features, labels, precision / float(weights[labels].sum()), Loss(weights))
    # Two classes: scikit-learn has one vector of weights, the difference of ours, on which L2 is half as strong.
    binary = classes == 2
    oracle = LogisticRegression(C=(2 if binary else 1) / precision, tol=1e-10, max_iter=10_000)
    values = standardized(features)
    oracle.fit(values.numpy(), labels.numpy(), sample_weight=weights[labels].numpy())
    theirs = torch.from_numpy(oracle.coef_)
    ours = head.weight.detach() * features.double().std(dim=0, correction=0)
    ours = ours[1:] - ours[:1] if binary else ours
    assert relative_difference(ours, theirs) < 1e-5
    logits = head(features.double()).detach()
    ours_probability = logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(ours_probability, oracle.predict_proba(values.numpy()), atol=1e-6)


def test_the_optimum_with_label_smoothing_is_that_of_a_plain_minimizer() -> None:
    features, labels = planted(120, 6, 3)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    head, _ = fit_head(features, labels, 0.01, Loss(weights, label_smoothing=0.1))
    values = standardized(features)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(7, 3).clone().requires_grad_()
        logits = values @ parameters[:-1] + parameters[-1]
        loss = F.cross_entropy(logits, labels, weights, label_smoothing=0.1) + 0.005 * parameters[:-1].square().sum()
        loss.backward()
        assert parameters.grad is not None
        return loss.item(), parameters.grad.flatten().numpy()

    best = minimize(objective, np.zeros(21), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    theirs = torch.from_numpy(best.x).view(7, 3)[:-1]
    ours = head.weight.detach().T * features.double().std(dim=0, correction=0)[:, None]
    assert relative_difference(ours, theirs) < 1e-5


def test_blocks_do_not_change_the_optimum_and_a_second_fit_is_the_same_bit_for_bit() -> None:
    features, labels = planted(300, 20, 4)
    first, _ = fit_head(features, labels, 0.01, unweighted(4))
    second, _ = fit_head(features, labels, 0.01, unweighted(4))
    in_blocks, _ = fit_head(features, labels, 0.01, unweighted(4), block=37)
    assert torch.equal(first.weight, second.weight)
    assert relative_difference(in_blocks.weight.detach(), first.weight.detach()) < 1e-6


def test_in_float32_rounding_is_neither_a_direction_nor_the_deviation_of_a_constant_feature() -> None:
    features, labels = planted(60, 200, 3)
    features[:, 7] = 1.3  # whose mean is not quite 1.3
    rows = TrainingRows(lambda numbers: features[numbers], labels, torch.float32)  # as on a GPU
    assert rows.standardization.scale[7] == 1
    vectors = spectrum_of(rows).vectors
    assert vectors is not None
    assert vectors.shape == (200, 59), "60 rows minus their mean"
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(59), rtol=0, atol=1e-4)


def test_a_fit_continues_from_its_state_bit_for_bit() -> None:
    features, labels = planted(200, 10, 3)
    rows = TrainingRows(lambda numbers: features[numbers], labels, torch.float64)
    head = nn.Linear(10, 3)

    def passes(fit: HeadFit, count: int) -> None:
        for _ in range(count):
            fit.add(features, labels)
            fit.step(lambda tensor: tensor)

    whole, halves, continued = (HeadFit(rows, spectrum_of(rows), unweighted(3), 1e-3) for _ in range(3))
    whole.start(head)
    halves.start(head)
    passes(whole, 9)
    passes(halves, 4)
    continued.load_state_dict(halves.state_dict(), nn.Linear(10, 3))
    passes(continued, 5)
    ours, theirs = nn.Linear(10, 3), nn.Linear(10, 3)
    continued.write(ours, evaluated=False)
    whole.write(theirs, evaluated=False)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_a_fit_whose_state_is_of_other_eigenvectors_starts_again_at_its_head() -> None:
    features, labels = planted(200, 10, 3)
    rows = TrainingRows(lambda numbers: features[numbers], labels, torch.float64)
    spectrum = spectrum_of(rows)
    assert spectrum.vectors is not None
    flipped = Spectrum(torch.cat([-spectrum.vectors[:, :1], spectrum.vectors[:, 1:]], dim=1), spectrum.values)
    elsewhere, here = (HeadFit(rows, basis, unweighted(3), 1e-3) for basis in (flipped, spectrum))
    head = nn.Linear(10, 3, dtype=torch.float64)
    elsewhere.start(head)
    for _ in range(5):
        elsewhere.add(features, labels)
        elsewhere.step(lambda tensor: tensor)
    elsewhere.write(head, evaluated=False)
    here.load_state_dict(elsewhere.state_dict(), head)
    written = nn.Linear(10, 3, dtype=torch.float64)
    here.write(written, evaluated=False)
    assert relative_difference(written.weight.detach(), head.weight.detach()) < 1e-10


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_a_constant_feature_does_no_harm(weight_decay: float) -> None:
    features, labels = planted(300, 8, 3)
    others = [0, 1, 2, 4, 5, 6, 7]
    expected, _ = fit_head(features[:, others], labels, weight_decay, unweighted(3))
    features[:, 3] = 7.0
    head, _ = fit_head(features, labels, weight_decay, unweighted(3))
    assert head.weight[:, 3].abs().max() < 1e-5
    assert relative_difference(head.weight[:, others].detach(), expected.weight.detach()) < 1e-5


def test_without_an_eigendecomposition_the_optimum_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted(100, 30, 3)
    expected, _ = fit_head(features, labels, 0.05, unweighted(3))
    monkeypatch.setattr("headstart.training.fitted_head.rows.LARGEST_EIGENPROBLEM", 10)
    head, _ = fit_head(features, labels, 0.05, unweighted(3))
    assert LARGEST_EIGENPROBLEM > 10
    assert relative_difference(head.weight.detach(), expected.weight.detach()) < 1e-6


def folded(features: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[FoldedRows, np.ndarray]:
    rows = TrainingRows(lambda numbers: features[numbers], labels, torch.float64)
    folds = inner_folds(labels.numpy(), None)
    return FoldedRows(rows, spectrum_of(rows), torch.from_numpy(folds), dtype), folds


def test_the_path_finds_the_weight_decay_that_scikit_learn_finds() -> None:
    features, labels = planted(150, 40, 3)
    rows, folds = folded(features, labels, PATH_DTYPE)
    points = weight_decay_path(rows, unweighted(3))
    values = standardized(features).numpy()
    losses = []
    for precision in PRECISIONS[: len(points)]:
        loss = 0.0
        for fold in range(5):
            oracle = LogisticRegression(C=1 / precision, tol=1e-8, max_iter=5000)
            oracle.fit(values[folds != fold], labels[folds != fold])
            probability = oracle.predict_proba(values[folds == fold])
            loss -= np.log(probability[np.arange(len(probability)), labels[folds == fold]]).sum()
        losses.append(loss / len(labels))
    np.testing.assert_allclose([point.loss for point in points], losses, rtol=2e-3)
    assert best_point(points).precision == PRECISIONS[int(np.argmin(losses))]
    assert points[-1].loss > best_point(points).loss
    assert len(points) < len(PRECISIONS), "values far beyond the best are not tried"


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read in every pass"])
@pytest.mark.parametrize("width", [10, 200], ids=["more rows", "more features"])
def test_the_head_of_a_fold_is_that_of_scikit_learn_on_the_other_folds(
    monkeypatch: pytest.MonkeyPatch, width: int, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr("headstart.training.fitted_head.folded_rows.KEPT_BYTES", 0)
        monkeypatch.setattr("headstart.training.fitted_head.rows.FEWEST_ROWS", 7)
        monkeypatch.setattr("headstart.training.fitted_head.rows.BLOCK_BYTES", 0)
    features, labels = planted(150, width, 3)
    rows, folds = folded(features, labels, torch.float64)
    assert len(rows.spectrum.values) == min(width, 149), "centred rows span one direction less than they are"
    heads = rows.standardized_heads(fit_folds(rows, unweighted(3), torch.full((5,), 0.01, dtype=torch.float64)))
    values = standardized(features)
    for fold, head in enumerate(heads):
        others = folds != fold
        oracle = LogisticRegression(C=1 / (0.01 * others.sum()), tol=1e-10, max_iter=5000)
        oracle.fit(values[others].numpy(), labels[others])
        held_out = values[~others]
        ours = (held_out @ head[:-1] + head[-1]).softmax(dim=1).numpy()
        np.testing.assert_allclose(ours, oracle.predict_proba(held_out.numpy()), atol=1e-4)


def test_folds_are_stratified_and_keep_groups_together() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 2])
    folds = inner_folds(labels, None)
    counts = np.array([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)])
    assert np.ptp(counts, axis=0).max() <= 1
    groups = [f"patient {index // 3}" for index in range(len(labels))]
    by_group = inner_folds(labels, groups)
    assert all(len(set(by_group[np.array(groups) == group])) == 1 for group in set(groups))


# --- runs ----------------------------------------------------------------------------------------------------

LBFGS = ("optimizer=lbfgs", "model.weights=default")


def test_a_run_ends_at_the_optimum_whatever_the_seed(train: Train, tmp_path: Path) -> None:
    first = train("model.weights=default", "seed=1", "report=true", folder=tmp_path / "first")  # optimizer=auto
    second = train(*LBFGS, "seed=2", "data.evaluation_batch_size=8", folder=tmp_path / "second")
    for name, value in tensors(tmp_path / "first").items():
        assert torch.equal(value, tensors(tmp_path / "second")[name])
    expected = {name: value for name, value in figures(first).items() if not name.startswith("features/")}
    assert {name: second[name] for name in expected} == expected
    assert first["epochs/best"] == first["epochs/run"] < 200
    assert first["auto/weight_decay"] in [precision / first["data/train_size"] for precision in PRECISIONS]
    assert first["test/accuracy"] > 0.9
    page = (tmp_path / "first" / "report" / "index.html").read_text()
    assert "Metrics of the model at the end of training" in page
    assert "last epoch" not in page, "it is the model"
    saved = torch.load(tmp_path / "first" / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["optimizer"]["weight_decay"] == first["auto/weight_decay"]
    assert headstart.load(tmp_path / "first").class_names == tuple("0123456789")


def test_class_weights_label_smoothing_and_augmented_views_enter_the_fit(train: Train, tmp_path: Path) -> None:
    plain = train(*LBFGS, "optimizer.weight_decay=0.3", folder=tmp_path / "plain")
    smoothed = train(*LBFGS, "optimizer.weight_decay=0.3", "loss.label_smoothing=0.1", folder=tmp_path / "smoothed")
    assert smoothed["train/loss"] > plain["train/loss"]
    views = ("augment=pad_crop", "features.views=3")
    augmented = train(*LBFGS, *views, "loss.class_weights=balanced", folder=tmp_path / "augmented")
    assert augmented["features/computed"] == 3 * augmented["data/train_size"]
    precisions = [augmented["auto/weight_decay"] * 3 * augmented["data/train_size"] / value for value in PRECISIONS]
    assert min(abs(ratio - 1) for ratio in precisions) < 1e-6, "every view is a row"
    assert augmented["test/accuracy"] > 0.8


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(train: Train, tmp_path: Path) -> None:
    settings = (*LBFGS, "optimizer.weight_decay=auto", *FEW)
    whole = train(*settings, folder=tmp_path / "whole")
    interrupt_after(3, *settings, folder=tmp_path / "part")
    assert [path.name for path in (tmp_path / "part" / "checkpoints").iterdir()] == ["last.ckpt"], "written once a pass"
    for name in ("part", "whole"):  # cut off, or finished
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        rest = train(*settings, f"ckpt_path={last}", folder=tmp_path / f"after {name}")
        assert findings(rest) == findings(whole)
        expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
        weights = load_file(tmp_path / f"after {name}" / "model" / "model.safetensors")
        assert all(torch.equal(value, expected[key]) for key, value in weights.items())


def test_two_processes_fit_the_head_of_one(train: Train, tmp_path: Path) -> None:
    settings = ("optimizer=lbfgs", "model.weights=default", "data.train_per_class=7", *SMALL[1:], *DIGITS)
    command(*settings, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}/two")
    two, one = read_metrics(tmp_path / "two"), train(*settings[:3], folder=tmp_path / "one")
    assert two["auto/weight_decay"] == one["auto/weight_decay"]
    weight, expected = (tensors(tmp_path / name)["head.weight"] for name in ("two", "one"))
    assert relative_difference(weight, expected) < 1e-5
    assert two["test/accuracy"] == one["test/accuracy"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["head=mlp"],
            "optimizer=lbfgs with head=mlp: it fits a linear head: take head=linear, or take optimizer=adam.",
        ),
        (["freeze=false"], "with freeze=False finetune=none: it fits a head on a frozen backbone: add freeze=true"),
        (["loss.mixup=0.2"], "mixed images have no features to cache: leave them out, or take optimizer=adam"),
        (["features=off"], "it needs cached features: take features=auto"),
        (["lr=auto"], "lr=auto: it has no learning rate: leave lr out"),
        (["scheduler=cosine"], "scheduler=cosine: it has no learning rate"),
        (["data.sampling=balanced"], "it sees every image equally often: take loss.class_weights=balanced"),
        (["callbacks.ema=0.9"], "callbacks.ema=0.9: it takes one step for all images"),
        (["trainer.gradient_clip_val=1.0"], "trainer.gradient_clip_val=1.0: it takes one step for all images"),
        (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1: expected a number of at least 0, or auto"),
    ],
)
def test_where_it_does_not_apply_it_says_so_and_what_does(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("optimizer=lbfgs", *overrides)
    assert message in str(error.value)


def test_features_that_do_not_fit_are_an_error_that_says_so(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"this run has none: they exceed features\.max_gb.*take optimizer=adam"):
        train(*LBFGS, "features.max_gb=1e-9")


def test_a_fit_that_is_cut_short_says_so_and_keeps_its_best_head(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = train(*LBFGS, "optimizer.weight_decay=0.001", "optimizer.max_iter=4")
    assert metrics["epochs/run"] == 4
    assert "the head has not reached its optimum in optimizer.max_iter=4 passes" in caplog.text
