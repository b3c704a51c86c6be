"""Samples that grow: every beginning is stratified, and no group is divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.advice.sample import LEAST, beginning, first_size, sample_order


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 6))
def test_every_beginning_is_stratified(seed: int, size: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 400)])
    order = sample_order(labels, None, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.bincount(labels[beginning(order, None, size)], minlength=classes)
    if size >= LEAST * classes:
        assert (counts >= np.minimum(LEAST, np.bincount(labels))).all()
        assert (counts <= size * np.bincount(labels) / len(labels) + LEAST + 1).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_a_sample_has_groups_as_a_whole(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"scene {number}" for number in rng.integers(0, 40, 300)]
    order = sample_order(rng.integers(0, 3, 300), groups, seed)
    assert sorted(order.tolist()) == list(range(300))
    chosen = beginning(order, groups, size)
    assert size <= len(chosen) < size + max(groups.count(group) for group in set(groups))
    inside = {groups[index] for index in chosen}
    assert inside.isdisjoint(groups[index] for index in order[len(chosen) :])


@pytest.mark.parametrize(
    ("images", "classes", "size"), [(10_000, 2, 32), (10_000, 100, 1600), (10_000, 1000, 2000), (20, 2, 20)]
)
def test_the_first_sample_has_sixteen_images_a_class(images: int, classes: int, size: int) -> None:
    assert first_size(images, classes) == size
