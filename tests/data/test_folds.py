"""Folds of a cross-validation: each image is held out once, no group is torn apart, classes are too small by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.dataset import LabelledImages, Samples
from headstart.data.folds import assign_folds, folded_images
from headstart.data.splits import make_splits
from headstart.utils.errors import DataError

CLASSES = ("ant", "bee", "fly", "moth")
SEEDS = st.integers(0, 2**32 - 1)


def samples(counts: list[int], prefix: str = "", group_size: int | None = None) -> Samples:
    """So many images of each class in random order, possibly in groups of that size within a class."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [f"{prefix}{index}.png" for index in range(len(labels))]
    seen = np.zeros(len(counts), dtype=int)
    groups = []
    for label in labels.tolist():
        groups.append(f"{CLASSES[label]}{seen[label] // (group_size or 1)}")
        seen[label] += 1
    return Samples(names, labels, names, groups if group_size else None)


def source(**splits: list[int]) -> LabelledImages:
    return LabelledImages(CLASSES, {name: samples(counts, f"{name}/") for name, counts in splits.items()})


@given(st.lists(st.integers(10, 40), min_size=2, max_size=4), st.integers(2, 10), SEEDS)
def test_each_image_is_in_one_fold_and_each_class_in_every_fold_alike(counts: list[int], folds: int, seed: int) -> None:
    images = samples(counts)
    assigned = assign_folds(images, folds, seed, class_names=CLASSES)
    assert set(assigned.tolist()) == set(range(1, folds + 1))
    for label, count in enumerate(counts):
        sizes = np.bincount(assigned[images.labels == label], minlength=folds + 1)[1:]
        assert sizes.sum() == count
        assert np.ptp(sizes) <= 1
    assert (assigned == assign_folds(images, folds, seed, class_names=CLASSES)).all()


@given(st.lists(st.integers(20, 60), min_size=2, max_size=4), st.integers(1, 4), st.integers(2, 5), SEEDS)
def test_no_group_is_in_two_folds(counts: list[int], group_size: int, folds: int, seed: int) -> None:
    images = samples(counts, group_size=group_size)
    assigned = assign_folds(images, folds, seed, class_names=CLASSES)
    assert images.groups is not None
    by_group: dict[str, set[int]] = {}
    for group, fold in zip(images.groups, assigned.tolist(), strict=True):
        by_group.setdefault(group, set()).add(fold)
    assert all(len(of_group) == 1 for of_group in by_group.values())
    assert set(assigned.tolist()) == set(range(1, folds + 1))


@given(st.integers(2, 5), SEEDS, st.booleans())
def test_a_fold_is_the_test_split_of_a_run_that_selects_on_other_images(folds: int, seed: int, official: bool) -> None:
    data = source(train=[30, 20, 25], **({"val": [5, 6, 7], "test": [4, 4, 4]} if official else {}))
    everything, held_out = sorted(folded_images(data).names), []
    settings = {"val_fraction": 0.2, "test_fraction": 0.5, "split_seed": seed, "folds": folds}
    for fold in range(1, folds + 1):
        splits = make_splits(data, **settings, fold=fold)
        assert sorted(name for split in splits.values() for name in split.names) == everything
        held_out += splits["test"].names
    assert sorted(held_out) == everything
    final = make_splits(data, **settings)
    assert sorted(final["train"].names) == everything
    assert "val" not in final
    assert (final["test"].names == data.splits["test"].names) if official else "test" not in final


def test_few_training_images_are_drawn_from_the_other_folds_and_all_images_are_held_out() -> None:
    splits = make_splits(
        source(train=[30] * 4), val_fraction=0.2, test_fraction=0.2, split_seed=0, train_per_class=3, folds=5, fold=2
    )
    assert [len(splits[name]) for name in ("train", "val", "test")] == [12, 20, 24]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            samples([9, 4]),
            "class 'bee' has 4 images, fewer than folds=5, and each fold needs one. Use fewer folds, add",
        ),
        (samples([9, 8], group_size=2), "class 'bee' has 4 groups, fewer than folds=5"),
    ],
)
def test_a_class_that_is_too_small_is_named(images: Samples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign_folds(images, 5, 0, class_names=CLASSES)


def test_a_class_whose_groups_all_fall_into_one_fold_is_named() -> None:
    counts = {"first": [1, 10, 0], "second": [0, 4, 1], "third": [6, 0, 6]}  # images of each class in each group
    labels = [label for of_group in counts.values() for label, count in enumerate(of_group) for _ in range(count)]
    groups = [group for group, of_group in counts.items() for _ in range(sum(of_group))]
    names = [str(index) for index in range(len(labels))]
    with pytest.raises(DataError, match="class 'fly' is in one of folds=2 only, because its images are in groups"):
        assign_folds(Samples(names, np.array(labels), names, groups), 2, 0, class_names=CLASSES)
