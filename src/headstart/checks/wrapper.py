"""Can the label be read off the wrapper of an image: the size of its file, its format, its camera or its border?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable
from headstart.data.group_folds import assign_group_folds
from headstart.data.workers import available_cores

FOLDS = 5
MAX_ROWS = 10_000  # the standard error of an accuracy is then at most half a percentage point
MAX_CLASSES = 100  # the time grows with their number
PERMUTATIONS, FOREST_PERMUTATIONS = 199, 999  # of single columns; of the answers of the trees, which cost less
ALPHA = 0.025  # of the single columns, and again of all of them together: at most 5 % false alarms
CLEAR = 0.2  # Cohen's h, "a small effect" (1988): 60 % where chance is 50 %, 17 % where it is 10 %
TREES, MIN_LEAF = 50, 3
CONTENT, BORDER, NAME = "mean ", "border ", " name"  # how names of columns begin or end
SIZES = ("file size", "bytes per pixel")
SHADES, SHARED = 8, 0.02  # border colours are equal within 8 levels of 255, and shared if 2 % of the images have one


@dataclass(frozen=True)
class _Rows:
    """The images that take part.

    Attributes:
        columns: what is known of each wrapper, float32, shape (rows, columns); NaN where nothing is.
        labels: int64, shape (rows,), from 0 to `classes` - 1.
        folds: the fold of each image, int64, shape (rows,), from 0 to `FOLDS` - 1.
        units: index of what gets one label when labels are permuted, int64, shape (rows,): the images of a group that
            have the same label, or the image.
        classes: number of classes.
    """

    columns: NDArray[np.float32]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    units: NDArray[np.int64]
    classes: int

    def permutations(self, number: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield a number of times the labels, shape (rows,), permuted within each fold."""
        _, first = np.unique(self.units, return_index=True)
        labels, folds = self.labels[first], self.folds[first]
        by_fold = np.argsort(folds, kind="stable")
        permuted = np.empty_like(labels)
        for _ in range(number):
            permuted[by_fold] = labels[np.argsort(folds + rng.random(len(folds)))]
            yield permuted[self.units]


def wrapper_findings(
    table: ImageTable,
    names: Sequence[str],
    columns: NDArray[np.float32],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Return the columns off which the label can be read alone, the most telling first, and all of them together.

    What is reported is significant and tells clearly more than chance: with many images every difference is
    significant, so that Cohen's h has to be 0.2 at least. Accuracies are balanced and cross-validated. Classes with
    fewer images than there are folds are left out, and so are rows and classes beyond `MAX_ROWS` and `MAX_CLASSES`.

    Content may tell the class honestly, because grass is green. So the mean colour is never reported, and of border
    colours only those that many images share count, which frames and backgrounds do. File names often say the class
    and reach no network: their length is never reported, their numbers by themselves, and both not in "all columns".

    Args:
        table: the images.
        names: name of each column, as in "border red", "mean blue", "file size" and "number in the file name".
        columns: what is known of each image's wrapper, shape (images, columns); NaN where nothing is.
        groups: number of each image's group, shape (images,): images of a group are in the same fold, such as copies of
            a picture. None takes the groups of the images, if they have any.
        seed: of the folds, the trees and the permutations.

    Returns:
        Findings of kind "wrapper". `image` is the name of the column or "all columns", `score` the accuracy.
    """
    rng = np.random.default_rng(seed)
    if groups is None and table.samples.groups is not None:
        groups = np.unique(np.asarray(table.samples.groups), return_inverse=True)[1]
    names, columns = _join_borders(names, columns)
    rows = _choose_rows(table.samples.labels, columns, groups, rng)
    if rows is None:
        return []
    told = {names[index]: values for index, values in _single_columns(rows, rng).items()}
    found = {
        name: (accuracy, p)
        for name, (accuracy, p) in sorted(told.items(), key=lambda item: -item[1][0])
        if p <= ALPHA and _clearly_above(accuracy, 1 / rows.classes) and not name.startswith((CONTENT, "length of"))
    }
    alone = tuple(found)
    wrapper = [index for index, name in enumerate(names) if not name.startswith(CONTENT) and not name.endswith(NAME)]
    together = _all_columns(rows, wrapper, rng)
    if together is not None:
        found["all columns"] = together
    return [_finding(about, accuracy, p, rows.classes, alone) for about, (accuracy, p) in found.items()]


def _join_borders(names: Sequence[str], columns: NDArray[np.float32]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the columns with one column "border" in place of its channels: a number for each colour that is shared.

    It is 0 where the colour is not shared by at least `SHARED` of the images, as it is where photographs go on to their
    borders, and NaN where it is missing.
    """
    channels = [index for index, name in enumerate(names) if name.startswith(BORDER)]
    others = [index for index, name in enumerate(names) if not name.startswith(BORDER)]
    if not channels:
        return list(names), columns
    shades = np.round(columns[:, channels] / SHADES)
    _, colours, counts = np.unique(shades, axis=0, return_inverse=True, return_counts=True)
    colours = colours.reshape(-1)
    border = np.where(counts[colours] >= SHARED * len(columns), 1 + colours, 0).astype(np.float32)
    border[np.isnan(shades).any(axis=1)] = np.nan
    return [*(names[index] for index in others), "border"], np.column_stack([columns[:, others], border])


def _finding(about: str, accuracy: float, p: float, classes: int, others: Collection[str]) -> Finding:
    tells = f"{about} together tell" if about == "all columns" else f"{about} alone tells"
    doubt = ""
    if about.endswith(NAME):
        doubt = "; a network does not see names, but do images with neighbouring numbers show one scene?"
    elif about == "border":
        doubt = "; is it a frame, or the background of what is shown?"
    elif about in SIZES and all(other in (*SIZES, "border") or other.endswith(NAME) for other in others):
        doubt = "; it may be the content: simple pictures make small files"
    detail = f"{tells} {_percent(accuracy)} of the labels (chance {_percent(1 / classes)}, p = {p:.3f}){doubt}"
    return Finding("wrapper", about, score=accuracy, detail=detail)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.1f} %"


def _clearly_above(accuracy: float, chance: float) -> bool:
    """Return whether Cohen's h, the difference of the arcsines of the roots, doubled, is at least `CLEAR`."""
    return 2 * (float(np.arcsin(accuracy**0.5)) - float(np.arcsin(chance**0.5))) >= CLEAR


def _choose_rows(
    labels: NDArray[np.int64],
    columns: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> _Rows | None:
    """Return the images that take part, at random where there are too many; None if there are not two classes."""
    readable = np.flatnonzero(~np.isnan(columns).all(axis=1))
    labels, columns = labels[readable], columns[readable]
    groups = np.arange(len(labels)) if groups is None else groups[readable]
    pairs, units = np.unique(np.stack([groups, labels], axis=1), axis=0, return_inverse=True)
    units, unit_labels = units.reshape(-1), pairs[:, 1]  # numpy 2.0 kept the dimensions
    sizes = np.bincount(unit_labels)
    classes = np.flatnonzero(sizes >= FOLDS)
    if len(classes) > MAX_CLASSES:
        classes = np.sort(rng.choice(classes, MAX_CLASSES, replace=False))
    if len(classes) < 2:
        return None
    fraction = MAX_ROWS / max(MAX_ROWS, int(np.isin(labels, classes).sum()))
    kept = np.zeros(len(unit_labels), dtype=bool)
    for label in classes:
        members = np.flatnonzero(unit_labels == label)
        kept[rng.permutation(members)[: max(FOLDS, round(fraction * len(members)))]] = True
    chosen = np.flatnonzero(kept[units])
    labels = np.searchsorted(classes, labels[chosen])
    folds = assign_group_folds(labels, groups[chosen], FOLDS, rng)
    return _Rows(columns[chosen], labels, folds, np.unique(units[chosen], return_inverse=True)[1], len(classes))


def _single_columns(rows: _Rows, rng: np.random.Generator) -> dict[int, tuple[float, float]]:
    """Return accuracy and p of each column that is not constant.

    Each column has a tree of one level: its values are divided into leaves without a look at the labels, and an image
    gets the class that has the largest fraction of its images in that leaf, counted in the other folds. So a permuted
    label costs a count, not a fit.

    Labels are permuted within folds and everything is counted again, which is an exact test: if the columns tell
    nothing of the labels, each of these permutations was as likely as the labels themselves. p is corrected for the
    number of columns: it is the fraction of permutations, the labels' own included, in which the best of all columns
    is at least as good as this one (maxT: Westfall & Young, "Resampling-Based Multiple Testing", 1993). Permutations
    stop when the best column can no longer be significant (Besag & Clifford, "Sequential Monte Carlo p-values", 1991);
    without a column that tells clearly more than chance there are none, and p is 1.
    """
    leaves = {index: _leaves(column) for index, column in enumerate(rows.columns.T)}
    cells = {index: of_column * FOLDS + rows.folds for index, of_column in leaves.items() if of_column.max() > 0}
    accuracies = {index: _cell_accuracy(of_column, rows.labels, rows.classes) for index, of_column in cells.items()}
    best = max(accuracies.values(), default=0.0)
    if not _clearly_above(best, 1 / rows.classes):
        return {index: (accuracy, 1.0) for index, accuracy in accuracies.items()}
    highest: list[float] = []
    for labels in rows.permutations(PERMUTATIONS, rng):
        highest.append(max(_cell_accuracy(of_column, labels, rows.classes) for of_column in cells.values()))
        if 1 + sum(value >= best for value in highest) > ALPHA * (PERMUTATIONS + 1):
            break
    return {
        index: (accuracy, (1 + sum(value >= accuracy for value in highest)) / (len(highest) + 1))
        for index, accuracy in accuracies.items()
    }


def _leaves(column: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the leaf of each value of a column, from 0: about √N leaves with as many values in each.

    A value that fills a leaf has one of its own, and so have missing values and all values of a column that has few.
    """
    values, of_value, counts = np.unique(column, return_inverse=True, return_counts=True)  # one NaN, the last
    number = max(8, int(len(column) ** 0.5))
    before = np.cumsum(counts) - counts
    alone = np.isnan(values) | (counts * number >= len(column)) | (len(values) <= number)
    leaves = np.where(alone, number + np.arange(len(values)), before * number // len(column))
    return np.unique(leaves[of_value.reshape(-1)], return_inverse=True)[1].reshape(-1)


def _cell_accuracy(cells: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> float:
    """Return the balanced accuracy of the answers that leaves get from the other folds.

    Args:
        cells: leaf times number of folds plus fold of each image, shape (rows,).
        labels: shape (rows,).
        classes: number of classes.
    """
    leaves = int(cells.max()) // FOLDS + 1
    counts = np.bincount(cells * classes + labels, minlength=leaves * FOLDS * classes).reshape(leaves, FOLDS, classes)
    others = counts.sum(axis=1, keepdims=True) - counts
    answers = (others / np.maximum(others.sum(axis=0), 1)).argmax(axis=2)
    correct = np.take_along_axis(counts, answers[..., np.newaxis], axis=2)
    recalls = np.bincount(answers.ravel(), correct.ravel(), minlength=classes) / counts.sum(axis=(0, 1))
    return round(float(recalls.mean()), 9)  # equal ones stay equal


def _all_columns(rows: _Rows, wrapper: Sequence[int], rng: np.random.Generator) -> tuple[float, float] | None:
    """Return accuracy and p of these columns together; None if they tell no more than chance.

    The answers are those of extremely randomized trees, fitted on the other folds. They are not fitted again to
    permuted labels, which would take minutes. Instead each fold is tested by itself: its labels are permuted under its
    own answers. That is exact, because its labels had no part in these answers. Folds are not independent of each
    other, as each is trained on the others, so that accuracies over all folds scatter more than such permutations
    (Noirhomme et al., "Biased binomial assessment of cross-validated estimation of classification accuracies", 2014).
    Therefore p is the smallest of the folds' p times their number (Bonferroni), which holds for any dependence.
    """
    # Ranks have no missing values, which scikit-learn 1.5 does not take here: they are the last ones of each column.
    ranks = [np.unique(rows.columns[:, index], return_inverse=True)[1].reshape(-1) for index in wrapper]
    ranks = [of_column for of_column in ranks if of_column.max() > 0]
    if len(ranks) < 2:
        return None
    answers = _forest_answers(np.stack(ranks, axis=1).astype(np.float32), rows, int(rng.integers(2**31)))
    recalls = _fold_recalls(answers, rows.labels, rows)
    accuracy = float(np.mean([np.mean(answers[rows.labels == label] == label) for label in range(rows.classes)]))
    if not _clearly_above(accuracy, 1 / rows.classes):
        return None
    permuted = (_fold_recalls(answers, labels, rows) for labels in rows.permutations(FOREST_PERMUTATIONS, rng))
    reached = sum(of_folds >= recalls for of_folds in permuted)
    p = FOLDS * (1 + int(np.min(reached))) / (FOREST_PERMUTATIONS + 1)
    return (accuracy, p) if p <= ALPHA else None


def _forest_answers(columns: NDArray[np.float32], rows: _Rows, seed: int) -> NDArray[np.int64]:
    """Return the class that trees fitted on the other folds give each image; int64, shape (rows,)."""
    from sklearn.ensemble import ExtraTreesClassifier

    answers = np.zeros(len(columns), dtype=np.int64)
    for fold in np.unique(rows.folds):
        held_out = rows.folds == fold
        least = max(MIN_LEAF, len(columns) // 1000)  # the size of a tree is leaves times classes
        forest = ExtraTreesClassifier(
            TREES, min_samples_leaf=least, class_weight="balanced", random_state=seed, n_jobs=available_cores()
        )
        answers[held_out] = forest.fit(columns[~held_out], rows.labels[~held_out]).predict(columns[held_out])
    return answers


def _fold_recalls(answers: NDArray[np.int64], labels: NDArray[np.int64], rows: _Rows) -> NDArray[np.float64]:
    """Return, for each fold, the sum of its classes' recalls; shape (folds,)."""
    index = rows.folds * rows.classes + labels
    sizes = np.bincount(index, minlength=FOLDS * rows.classes)
    correct = np.bincount(index, answers == labels, minlength=FOLDS * rows.classes)
    recalls = (correct / np.maximum(sizes, 1)).reshape(FOLDS, rows.classes)
    sums: NDArray[np.float64] = recalls.sum(axis=1).round(9)  # equal ones stay equal
    return sums
