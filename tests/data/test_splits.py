"""Splits: disjoint, stratified, stable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.dataset import LabelledImages, Samples
from headstart.data.splits import make_splits, sample_per_class, stratified_split
from headstart.utils.errors import DataError


def source(counts: list[int], **others: list[int]) -> LabelledImages:
    """A source with so many training images of each class, and possibly other splits."""

    def samples(name: str, counts: list[int]) -> Samples:
        labels = np.repeat(np.arange(len(counts)), counts)
        labels = np.random.default_rng(0).permutation(labels)
        names = [f"{name}/{index}" for index in range(len(labels))]
        return Samples(names, labels, names)

    splits = {"train": samples("train", counts)} | {name: samples(name, c) for name, c in others.items()}
    return LabelledImages(tuple(f"class{index}" for index in range(len(counts))), splits)


COUNTS = st.lists(st.integers(20, 60), min_size=2, max_size=5)
FRACTIONS = st.floats(0.1, 0.4)


@given(COUNTS, FRACTIONS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_every_image_is_in_one_split_stratified_by_class(counts: list[int], val: float, test: float, seed: int) -> None:
    settings = {"val_fraction": val, "test_fraction": test, "split_seed": seed}
    splits = make_splits(source(counts), **settings)
    names = [name for samples in splits.values() for name in samples.names]
    assert sorted(names) == sorted(source(counts).splits["train"].names)
    for name, fraction in (("val", val), ("test", test)):
        for label, count in enumerate(counts):
            assert abs((splits[name].labels == label).sum() - fraction * count) < 2
    again = make_splits(source(counts), **settings)
    assert {n: s.names for n, s in splits.items()} == {n: s.names for n, s in again.items()}


def test_the_split_depends_on_its_own_seed_alone() -> None:
    settings = {"val_fraction": 0.2, "test_fraction": 0.2}
    first = make_splits(source([30, 30]), **settings, split_seed=0)
    np.random.seed(5)
    assert make_splits(source([30, 30]), **settings, split_seed=0)["val"].names == first["val"].names
    assert make_splits(source([30, 30]), **settings, split_seed=1)["val"].names != first["val"].names


def test_official_splits_stay_as_they_are() -> None:
    given = source([20, 20], val=[3, 4], test=[5, 6])
    splits = make_splits(given, val_fraction=0.5, test_fraction=0.5, split_seed=0)
    assert {name: samples.names for name, samples in splits.items()} == {
        name: samples.names for name, samples in given.splits.items()
    }


def test_missing_splits_are_split_off_train_alone() -> None:
    splits = make_splits(source([20, 20], test=[5, 6]), val_fraction=0.25, test_fraction=0.5, split_seed=0)
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 30, "val": 10, "test": 11}
    assert all(name.startswith("train/") for name in splits["train"].names + splits["val"].names)


def test_a_fraction_of_0_makes_no_test_split() -> None:
    assert set(make_splits(source([20, 20]), val_fraction=0.2, test_fraction=0, split_seed=0)) == {"train", "val"}


@given(COUNTS, st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_a_larger_sample_includes_a_smaller_one(counts: list[int], few: int, seed: int) -> None:
    labels = source(counts).splits["train"].labels
    names = source(counts).class_names
    less = sample_per_class(labels, few, seed, class_names=names)
    more = sample_per_class(labels, few + 5, seed, class_names=names)
    assert np.bincount(labels[less]).tolist() == [few] * len(counts)
    assert set(less) < set(more)


def test_too_few_images_are_named() -> None:
    with pytest.raises(DataError, match="class 'class1' has a single image left, .* val split needs two"):
        make_splits(source([20, 1]), val_fraction=0.2, test_fraction=0, split_seed=0)
    with pytest.raises(DataError, match="class 'class1' has 2 images, too few to have one in the val split of 16"):
        make_splits(source([100, 2]), val_fraction=0.15, test_fraction=0, split_seed=0)
    with pytest.raises(DataError, match=r"a val split of 1 out of 8 images .* data\.val_fraction"):
        make_splits(source([4, 4]), val_fraction=0.1, test_fraction=0, split_seed=0)
    with pytest.raises(DataError, match="class 'class0' has 16 training images: data.train_per_class=17"):
        make_splits(source([20, 20]), val_fraction=0.2, test_fraction=0, split_seed=0, train_per_class=17)


def test_a_published_random_state_gives_its_split() -> None:
    from sklearn.model_selection import train_test_split

    labels = source([965, 681]).splits["train"].labels
    remaining, split_off = stratified_split(labels, 165, 13, class_names=("a", "b"), name="val")
    expected = train_test_split(np.arange(1646), test_size=0.1, stratify=labels, random_state=13)
    assert (len(remaining), len(split_off)) == (1481, 165)
    assert remaining.tolist() == sorted(expected[0])
    assert split_off.tolist() == sorted(expected[1])
