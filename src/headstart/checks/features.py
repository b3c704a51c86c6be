"""Checks by the features of a pretrained backbone: near copies, labels, outliers, and what leaks do to a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.cache.feature_loaders import FeatureTable
from headstart.checks.consequences import leak_consequences, leaked_images
from headstart.checks.copies import belonging_together, connected_groups, copy_findings, links
from headstart.checks.feature_reader import FeatureReader, open_reader
from headstart.checks.findings import Consequence, Finding
from headstart.checks.heads import cross_validate, steps
from headstart.checks.near_copies import (
    SAME,
    Threshold,
    alignment_of_pairs,
    calibrated_threshold,
    calibration_rows,
    candidate_pairs,
    transformed,
)
from headstart.checks.neighbours import Neighbours, Projection, fit_projection, nearest_neighbours
from headstart.checks.outliers import outlier_findings
from headstart.checks.shift import DIMENSIONS, shift_findings
from headstart.checks.table import ImageTable
from headstart.checks.wrong_labels import can_answer, label_findings, without_contradicted
from headstart.config.schema import Config
from headstart.data.dataset import Samples
from headstart.data.preprocessing import compose, evaluation_transform, resize_and_crop, to_normalised_tensor
from headstart.utils.progress import Advance, progress_bar, shows_progress

NEIGHBOURS = 5  # that are kept of each image


@dataclass(frozen=True)
class FeatureResults:
    """What features tell about images.

    Attributes:
        findings: near copies, labels, outliers, and a difference between train and test.
        consequences: accuracy with and without copies, of each split that has copies of an earlier one.
        near_groups: indices of the images of each group that shows nearly the same picture. Of identical pictures only
            the first is among them.
        notes: what was measured, and what was left out and why.
    """

    findings: list[Finding]
    consequences: list[Consequence]
    near_groups: list[list[int]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Similarities:
    """Different pictures, and how similar they are.

    Attributes:
        images: indices of the images, without copies: of identical ones the first.
        vectors: their projected features, shape (images, dimensions).
        neighbours: their nearest neighbours, as rows of `images`.
        threshold: the similarity from which two may be near copies.
    """

    images: NDArray[np.int64]
    vectors: Tensor
    neighbours: Neighbours
    threshold: Threshold

    def components(self, images: int) -> Tensor:
        """Return the first components of all images, shape (images, components); 0 for copies, which have none."""
        components = torch.zeros(images, min(DIMENSIONS, self.vectors.shape[1]))
        components[torch.from_numpy(self.images)] = self.vectors[:, -DIMENSIONS:]
        return components


def feature_findings(
    config: Config, table: ImageTable, copies: Sequence[Sequence[int]], *, tested: bool
) -> FeatureResults:
    """Check images by the features of the config's backbone.

    Features come from the cache: those that a run with this backbone has computed are not computed again.

    Args:
        config: the checked config; its groups data, model, features and trainer count.
        table: the images; all of them can be read.
        copies: indices of the images of each group of identical pictures.
        tested: whether the test split is the source's own: one that is drawn at random does not differ from train.

    Raises:
        HeadstartError: an image cannot be read, or the backbone or its weights are not available.
    """
    reader = open_reader(config)
    shown = shows_progress(reader.trainer)
    transform = evaluation_transform(reader.backbone.preprocessing)
    features = reader.read({"train": table.samples}, transform).training_table
    different = _first_of_each(len(table), copies)
    similar = compare(features, different, *calibrate(reader, table.samples, features, different), shown=shown)
    near_groups = connected_groups(near_copies(table.samples, similar, shown=shown))
    every_group = connected_groups(links([*copies, *near_groups]))
    units = belonging_together(table, every_group)
    groups = None if len(np.unique(units)) == len(table) else [str(unit) for unit in units]
    findings = copy_findings(table, near_groups, "nearly identical pixels", "near_")
    notes = [str(similar.threshold)]
    with progress_bar("Looking for wrong labels", steps(len(table)), shown=shown) as advance:
        if can_answer(table, groups):
            findings += label_findings(table, answer_out_of_fold(table, features, groups, advance))
        else:
            notes.append("labels were not checked: there are too few images, classes or groups")
    with progress_bar("Looking for outliers", len(similar.images), shown=shown) as advance:
        findings += outlier_findings(table, features, similar.images, advance)
    if tested:
        findings += shift_findings(table, similar.components(len(table)), np.intersect1d(units, similar.images))
    leaked = leaked_images(table, every_group)
    with progress_bar("Measuring what leaks do", steps(len(table)), shown=shown) as advance:
        consequences = leak_consequences(table, features, leaked, groups, advance)
    return FeatureResults(findings, consequences, near_groups, notes)


def answer_out_of_fold(
    table: ImageTable, features: FeatureTable, groups: Sequence[str] | None, advance: Advance = lambda _: None
) -> NDArray[np.float64]:
    """Return the log probabilities of each image by a head that has seen neither it, its group nor doubtful labels."""
    everything, classes, labels = np.arange(len(table)), len(table.class_names), table.samples.labels
    fitted = cross_validate(features, everything, labels, groups, classes, advance)
    return without_contradicted(fitted, labels).answers()


def calibrate(
    reader: FeatureReader, samples: Samples, features: FeatureTable, images: NDArray[np.int64]
) -> tuple[Projection, Threshold]:
    """Fit the projection in which images are compared, and measure how similar near copies are in it.

    Args:
        reader: computes the features of some transformed images, unless they are cached.
        samples: all images.
        features: their features.
        images: indices of those to compare, of which no two are identical.
    """
    projection = fit_projection(features, images)
    preprocessing = reader.backbone.preprocessing
    originals = images[calibration_rows(len(images), preprocessing.crop)]
    plain = transformed(samples, originals, compose(*resize_and_crop(preprocessing)))
    data = reader.read({"train": plain}, compose(*to_normalised_tensor(preprocessing)))
    copies = projection.of_images(data.training_table, np.arange(len(plain)))
    return projection, calibrated_threshold(copies, projection.of_images(features, originals))


def compare(
    features: FeatureTable, images: NDArray[np.int64], projection: Projection, threshold: Threshold, *, shown: bool
) -> Similarities:
    """Find the nearest neighbours of images, of which no two are identical."""
    vectors = projection.of_images(features, images)
    with progress_bar("Comparing images", len(images), shown=shown) as advance:
        neighbours = nearest_neighbours(vectors, NEIGHBOURS, advance)
    return Similarities(images, vectors, neighbours, threshold)


def near_copies(samples: Samples, similar: Similarities, *, shown: bool) -> list[tuple[int, int]]:
    """Return the pairs of indices of images that show nearly the same picture."""
    pairs = similar.images[candidate_pairs(similar.neighbours, similar.threshold.similarity)]
    with progress_bar("Comparing pictures", len(pairs), shown=shown) as advance:
        scores = alignment_of_pairs(samples, pairs, advance)
    return [(left, right) for left, right in pairs[scores >= SAME].tolist()]


def _first_of_each(images: int, copies: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the indices of all images but the later ones of each group of identical pictures."""
    later = np.array([index for group in copies for index in sorted(group)[1:]], dtype=np.int64)
    return np.setdiff1d(np.arange(images), later)
