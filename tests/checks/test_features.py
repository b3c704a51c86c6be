"""Checks by features: near copies, wrong labels, outliers, shift, and what leaks do to a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from headstart.cache.feature_loaders import FeatureTable
from headstart.cache.segments import Rows
from headstart.checks.alignment import SIDE, alignment_scores
from headstart.checks.consequences import leaked_images
from headstart.checks.copies import belonging_together
from headstart.checks.features import FeatureResults, answer_out_of_fold, feature_findings
from headstart.checks.heads import CrossValidation, cross_validate
from headstart.checks.near_copies import SAME, calibrated_threshold, candidate_pairs
from headstart.checks.neighbours import Neighbours, nearest_neighbours
from headstart.checks.outliers import outlier_findings
from headstart.checks.shift import told_apart
from headstart.checks.table import ImageTable, image_table
from headstart.checks.wrong_labels import confident_classes, label_scores
from headstart.data.build import open_images
from headstart.data.dataset import Samples
from headstart.train import run
from headstart.utils.errors import ConfigError
from tests.helpers.runs import RESNET18, SMALL, composed, read_metrics

OVERRIDES = (*SMALL, *RESNET18, "data=imagefolder")


def scene(seed: int, label: int) -> Image.Image:
    """Return a smooth picture, redder for the first class and bluer for the second."""
    rng = np.random.default_rng((label, seed))
    coarse = rng.integers(0, 200, (7, 9, 3)) + np.array([[55, 0, 0], [0, 0, 55]])[label]
    return Image.fromarray(coarse.astype(np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in three splits; val holds two copies from train: recompressed, and cropped in another class."""
    root = tmp_path_factory.mktemp("planted")
    for label, name in enumerate(("red", "blue")):
        for split, first, count in (("train", 0, 30), ("val", 100, 8), ("test", 200, 8)):
            for seed in range(first, first + count):
                save(scene(seed, label), root / split / name / f"{seed}.png")
    save(scene(3, 0), root / "val" / "red" / "recompressed.jpg")
    save(scene(5, 1).crop((6, 5, 84, 65)), root / "val" / "red" / "cropped.png")
    return root


@pytest.fixture(scope="module")
def found(planted: Path) -> FeatureResults:
    config = composed(*OVERRIDES, f"data.root={planted}")
    images = open_images(config.data)
    return feature_findings(config, image_table(images), [], tested=True)


def named(results: FeatureResults, kind: str) -> list[tuple[str, str]]:
    return [(finding.image, finding.other) for finding in results.findings if finding.kind == kind]


def test_near_copies_are_found_across_splits_and_labels(found: FeatureResults) -> None:
    pairs = [("val/red/cropped.png", "train/blue/5.png"), ("val/red/recompressed.jpg", "train/red/3.png")]
    assert sorted(named(found, "near_copy")) == pairs
    assert sorted(named(found, "near_leak")) == pairs
    assert named(found, "near_conflict") == pairs[:1]
    assert len(found.near_groups) == 2


def test_the_consequence_counts_the_images_without_a_copy_in_train(found: FeatureResults) -> None:
    (consequence,) = found.consequences
    assert (consequence.split, consequence.images, consequence.clean) == ("val", 18, 16)
    assert consequence.clean_correct <= consequence.correct <= consequence.clean_correct + 2


def test_the_threshold_is_told(found: FeatureResults) -> None:
    assert any("cosine similarity" in note for note in found.notes)


def test_clean_splits_have_no_leak_and_no_consequence(tmp_path: Path) -> None:
    for label, name in enumerate(("red", "blue")):
        for seed in range(20):
            save(scene(seed, label), tmp_path / name / f"{seed}.png")
    config = composed(*OVERRIDES, f"data.root={tmp_path}")
    images = open_images(config.data)
    results = feature_findings(config, image_table(images), [], tested=False)
    assert results.consequences == []
    assert results.near_groups == []
    assert {finding.kind for finding in results.findings} <= {"label", "outlier"}


def test_features_are_shared_with_runs(planted: Path, own_cache: Path, tmp_path: Path) -> None:
    config = composed(*OVERRIDES, f"data.root={planted}", "freeze=true")
    images = open_images(config.data)
    feature_findings(config, image_table(images), [], tested=True)
    run(config, tmp_path / "run")
    assert own_cache.is_dir()
    assert read_metrics(tmp_path / "run")["features/computed"] == 0


def test_features_that_are_switched_off_stop_the_check(planted: Path) -> None:
    config = composed(*OVERRIDES, f"data.root={planted}", "features=off", "lr=1e-3")
    images = open_images(config.data)
    with pytest.raises(ConfigError, match="features=auto"):
        feature_findings(config, image_table(images), [], tested=True)


def thumbnail(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32).copy())[None]


@pytest.mark.parametrize(
    "copy",
    [
        ImageOps.mirror,
        lambda image: image.crop((0, 0, 76, 60)),
        lambda image: ImageOps.expand(image, 6),
        lambda image: image.point(lambda value: 0.6 * value),
        lambda image: image.resize((30, 24)),
        lambda image: image.crop((0, 14, 90, 70)),
    ],
    ids=["mirrored", "cropped", "bordered", "darker", "resized", "of another shape"],
)
def test_copies_align_either_way_and_other_pictures_do_not(copy: object) -> None:
    assert callable(copy)
    original, other = thumbnail(scene(1, 0)), thumbnail(scene(2, 0))
    copied = thumbnail(copy(scene(1, 0)))
    assert alignment_scores(original, copied).item() > SAME
    assert alignment_scores(copied, original).item() > SAME
    assert alignment_scores(other, copied).item() < SAME


def test_pictures_without_detail_do_not_align() -> None:
    flat = torch.full((1, SIDE, SIDE), 100.0)
    assert abs(alignment_scores(flat, flat).item()) < 0.1


@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_neighbours_are_those_of_all_similarities(images: int, count: int, seed: int) -> None:
    vectors = F.normalize(torch.randn(images, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.checks.neighbours.BLOCK", 16)
        found = nearest_neighbours(vectors, count, lambda _: None)
    whole = (vectors @ vectors.T).fill_diagonal_(-2)
    expected = whole.sort(dim=1, descending=True).values[:, : min(count, images - 1)]
    np.testing.assert_allclose(found.similarities[:, : images - 1], expected.numpy(), atol=1e-6)
    assert (found.indices[:, images - 1 :] == -1).all()
    assert (found.indices != np.arange(images)[:, None]).all()


def test_candidates_are_pairs_once() -> None:
    neighbours = Neighbours(
        np.array([[1, 2], [0, 2], [1, -1]]), np.array([[0.9, 0.2], [0.9, 0.6], [0.6, -1]], np.float32)
    )
    assert candidate_pairs(neighbours, 0.5).tolist() == [[0, 1], [1, 2]]


def test_the_threshold_keeps_copies_and_leaves_different_pairs_out() -> None:
    generator = torch.Generator().manual_seed(0)
    originals = F.normalize(torch.randn(100, 32, generator=generator), dim=1)
    copies = F.normalize(originals.repeat(8, 1) + 0.05 * torch.randn(800, 32, generator=generator), dim=1)
    threshold = calibrated_threshold(copies, originals)
    assert threshold.recall >= 0.98
    assert threshold.false_positives <= 0.01


def table_of(labels: list[int], splits: list[int], groups: list[str] | None = None) -> ImageTable:
    names = [f"{index}.png" for index in range(len(labels))]
    samples = Samples(names, np.array(labels), names, groups)
    return ImageTable(samples, np.array(splits), ("cat", "dog"))


def test_only_the_copy_in_the_later_split_is_leaked() -> None:
    table = table_of([0] * 5, [0, 0, 1, 1, 2])
    assert leaked_images(table, [[0, 2], [3, 4]]).tolist() == [False, False, True, False, True]


def test_copies_and_groups_of_names_belong_together() -> None:
    table = table_of([0] * 5, [0] * 5, ["a", "b", "b", "c", "d"])
    assert belonging_together(table, [[0, 2]]).tolist() == [0, 0, 0, 3, 4]


def test_a_confidently_contradicted_label_ranks_first_and_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    probability = np.where(labels == 0, 0.9, 0.1)
    probability[3], probability[4] = 0.02, 0.5  # the head is sure of the one, and not of the other
    answers = np.log(np.stack([probability, 1 - probability], axis=1))
    assert label_scores(answers, labels).argmax() == 3
    assert np.flatnonzero(confident_classes(answers, labels) != labels).tolist() == [3]


def clouds(images: int, wrong: float) -> tuple[FeatureTable, NDArray[np.int64], NDArray[np.bool_]]:
    """Return features of two classes, their labels, and which labels are wrong."""
    rng = np.random.default_rng(0)
    true, flipped = np.arange(images) % 2, rng.random(images) < wrong
    vectors = rng.normal(0, 1, (images, 64)).astype(np.float32)
    vectors[:, :8] += 2 * true[:, None]
    labels = np.where(flipped, 1 - true, true)
    features = FeatureTable(Rows([], labels[:0], labels[:0], np.dtype("float32"), 256), labels)
    features.features = torch.from_numpy(vectors)
    return features, labels, flipped


def fitted_to(features: FeatureTable, labels: NDArray[np.int64]) -> CrossValidation:
    return cross_validate(features, np.arange(len(labels)), labels, None, 2, lambda _: None)


def test_wrong_labels_do_not_hide_each_other() -> None:
    features, labels, flipped = clouds(200, 0.25)
    plain = label_scores(fitted_to(features, labels).answers(), labels)
    table = table_of(labels.tolist(), [0] * len(labels))
    scores = label_scores(answer_out_of_fold(table, features, None), labels)
    found, found_at_first = (average_precision_score(flipped, each) for each in (scores, plain))
    assert found > found_at_first + 0.03
    assert found > 0.97


def test_labels_that_are_left_out_change_no_answer() -> None:
    features, labels, flipped = clouds(100, 0.2)
    fitted = fitted_to(features, labels)
    answers = fitted.without(flipped).answers()
    fitted.rows.labels[torch.from_numpy(flipped)] = 0
    np.testing.assert_array_equal(fitted.without(flipped).answers(), answers)
    assert (answers != fitted.answers()).all()


def test_nothing_is_left_out_where_a_fold_would_be_empty() -> None:
    features, labels, _ = clouds(100, 0.2)
    fitted = fitted_to(features, labels)
    assert fitted.without(fitted.folds.numpy() == 4) is fitted


def outliers(features: torch.Tensor, labels: NDArray[np.int64]) -> list[int]:
    """Return the indices of the images that are named."""
    rows = Rows([], np.empty(0, np.int64), np.empty(0, np.int64), np.dtype("float32"), 4)
    cached = FeatureTable(rows, labels)
    cached.features = features
    table = table_of(labels.tolist(), [0] * len(labels))
    findings = outlier_findings(table, cached, np.arange(len(labels)), lambda _: None)
    return [table.samples.names.index(finding.image) for finding in findings]


@pytest.fixture(params=[10_000, 80], ids=["all are references", "a part is"])
def references(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.checks.outliers.REFERENCES", request.param)
    monkeypatch.setattr("headstart.checks.outliers.BLOCK", 32)


@pytest.mark.usefixtures("references")
def test_foreign_images_are_outliers_although_they_are_near_each_other() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 80)
    features = 3 * np.eye(16)[labels] + rng.normal(0, 0.3, (160, 16))
    foreign = [7, 33, 90, 120, 151]
    features[foreign] = 3 * np.eye(16)[5] + rng.normal(0, 0.1, (5, 16))
    assert outliers(torch.from_numpy(features).float(), labels) == foreign


@pytest.mark.usefixtures("references")
def test_a_small_class_is_no_outlier() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 150 + [1] * 10)
    features = 3 * np.eye(16)[labels] + rng.normal(0, 0.3, (160, 16))
    assert outliers(torch.from_numpy(features).float(), labels) == []


def test_few_images_have_no_outliers() -> None:
    features = torch.ones(60, 4) + 0.1 * torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    features[3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    labels = np.zeros(60, np.int64)
    assert outliers(features, labels) == [3]
    assert outliers(features[:40], labels[:40]) == []


def test_a_shift_is_found_and_p_is_that_of_chance_without_one() -> None:
    rng = np.random.default_rng(0)
    small = []
    for seed in range(40):
        labels = rng.integers(0, 2, 120)
        sides = rng.random(120) < np.where(labels == 0, 0.2, 0.4)  # other frequencies of classes are no shift
        features = torch.from_numpy(rng.normal(0, 1, (120, 8)) + 3 * labels[:, None])
        small.append(told_apart(features, sides, labels, np.random.default_rng(seed))[1] <= 0.05)
    assert sum(small) <= 6  # of 40 at 5 %: more has a probability of 0.3 %
    auc, p = told_apart(features + 1.5 * torch.from_numpy(sides)[:, None], sides, labels, rng)
    assert auc > 0.8
    assert p == pytest.approx(1 / 200)
