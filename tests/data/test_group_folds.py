import warnings

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from headstart.data.group_folds import assign_group_folds


def unevenness(labels: NDArray[np.int64], assigned: NDArray[np.int64], folds: int) -> float:
    """Return the standard deviation of a class's fractions in the folds, the mean of all classes."""
    fractions = np.array([np.bincount(assigned[labels == label], minlength=folds) for label in np.unique(labels)])
    return float((fractions / fractions.sum(axis=1, keepdims=True)).std(axis=1).mean())


@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 12), st.integers(1, 60), st.integers(2, 20))
def test_no_group_is_divided_and_no_fold_is_empty(
    seed: int, images: int, classes: int, groups: int, folds: int
) -> None:
    rng = np.random.default_rng(seed)
    labels, codes = rng.integers(0, classes, images), rng.integers(0, groups, images)
    folds = min(folds, len(np.unique(codes)))
    assigned = assign_group_folds(labels, codes, folds, np.random.default_rng(seed))
    assert all(len(np.unique(assigned[codes == code])) == 1 for code in np.unique(codes))
    assert len(np.unique(assigned)) == folds
    named = [f"{code:03}" for code in codes.tolist()]
    assert np.array_equal(assigned, assign_group_folds(labels, named, folds, np.random.default_rng(seed)))


def test_folds_are_as_even_as_those_of_scikit_learn() -> None:
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 60, 400)
        labels = np.where(rng.random(400) < 0.5, rng.integers(0, 6, 60)[codes], rng.integers(0, 6, 400))
        ours.append(unevenness(labels, assign_group_folds(labels, codes, 5, rng), 5))
        assigned = np.zeros(400, dtype=np.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")
            splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
            for fold, (_, held_out) in enumerate(splitter.split(labels, labels, codes)):
                assigned[held_out] = fold
        theirs.append(unevenness(labels, assigned, 5))
    assert np.mean(ours) <= np.mean(theirs)


def test_images_by_themselves_are_dealt_evenly() -> None:
    labels = np.repeat(np.arange(40), 3)  # fewer images of a class than there are folds
    sizes = np.bincount(assign_group_folds(labels, np.arange(120), 5, np.random.default_rng(0)))
    assert sizes.tolist() == [24] * 5
