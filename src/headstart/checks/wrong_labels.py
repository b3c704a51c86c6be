"""Labels that are probably wrong, by confident learning on out-of-fold answers (Northcutt et al., arXiv:1911.00068)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headstart.checks.findings import Finding
from headstart.checks.heads import CrossValidation
from headstart.checks.table import ImageTable
from headstart.training.fitted_head.path import number_of_folds

FEWEST_IMAGES = 20  # of all classes together; with fewer, answers are hardly better than chance


def can_answer(table: ImageTable, groups: Sequence[str] | None) -> bool:
    """Tell whether there are enough images, classes and groups for out-of-fold answers."""
    labels = table.samples.labels
    return len(labels) >= FEWEST_IMAGES and len(np.unique(labels)) > 1 and number_of_folds(labels, groups) > 1


def label_scores(answers: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how probably the label of each image is wrong: minus the log probability of the label.

    It is the self-confidence of confident learning. With two classes, the margin to the other class ranks alike.

    Args:
        answers: log probabilities by heads that have not seen the image, shape (images, classes).
        labels: shape (images,).
    """
    scores: NDArray[np.float64] = -answers[np.arange(len(labels)), labels]
    return scores


def confident_classes(answers: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class for which each image counts in the confident joint; its label if it counts for none.

    An image counts for the most probable of those classes whose probability is at least the mean that the images of the
    class have for it. So a class of which the heads are less sure needs less.

    Returns:
        A class index for each image, int64, shape (images,).
    """
    probabilities, present = np.exp(answers), np.unique(labels)
    thresholds = np.full(answers.shape[1], np.inf)  # a class without images has none
    thresholds[present] = [probabilities[labels == label, label].mean() for label in present]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted: NDArray[np.int64] = np.where(confident.max(axis=1) < 0, labels, confident.argmax(axis=1))
    return counted


def without_contradicted(fitted: CrossValidation, labels: NDArray[np.int64]) -> CrossValidation:
    """Fit heads again without the images off the diagonal of the confident joint of their answers.

    A wrong label that a head is fitted to makes it less sure of others (Brodley & Friedl, Identifying Mislabeled
    Training Data, 1999). Fitting a second time finds more of them, also where few labels are wrong; a third time does
    not on all sets, and neither do averages over several divisions into folds (benchmarks/README.md).

    Args:
        fitted: the heads.
        labels: the labels that they are fitted to, shape (images,).
    """
    return fitted.without(confident_classes(fitted.answers(), labels) != labels)


def label_findings(table: ImageTable, answers: NDArray[np.float64]) -> list[Finding]:
    """Return the images off the diagonal of the confident joint; see `label_scores` for their order."""
    labels, names = table.samples.labels, table.samples.names
    scores, counted = label_scores(answers, labels), confident_classes(answers, labels)
    findings = []
    for index in np.flatnonzero(counted != labels).tolist():
        own, other = (100 * float(np.exp(answers[index, label])) for label in (labels[index], counted[index]))
        looks = f"looks like {table.class_names[counted[index]]} ({other:.0f} % against {own:.0f} %)"
        detail = f"{table.describe(index)}; {looks}"
        findings.append(Finding("label", names[index], score=float(scores[index]), detail=detail))
    return findings
