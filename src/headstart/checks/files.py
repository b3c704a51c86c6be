"""What the files of images tell without decoding them: copies, damage, odd sizes and modes, groups, and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.checks.copies import copy_findings, equal_groups
from headstart.checks.facts import Facts
from headstart.checks.findings import Finding
from headstart.checks.table import SPLITS, ImageTable
from headstart.data.group_names import suggest_groups
from headstart.data.image_io import ROTATED
from headstart.utils.statistics import robust_deviation

# What more than one image in twenty has is a property of the data set, and nothing that stands out.
UNUSUAL = 0.05
# An image stands out if its side (the root of its pixels) or its aspect ratio is this many times larger or smaller than
# the median, and this far outside of what is common: Gaussian values are as far once in two million times.
TIMES = {"size": 3.0, "aspect_ratio": 2.0}
DEVIATIONS = 5.0
# From 10:1 on, whoever answers the larger of two classes each time is right at least ten times in eleven.
IMBALANCE = 10
SMALL_CLASS = 5  # with fewer images, even five folds cannot each have one


def file_findings(table: ImageTable, facts: Facts) -> list[Finding]:
    """Return what is wrong with the files of images, and with their classes and splits.

    Args:
        table: the images.
        facts: facts of them; what the pixels tell is not needed.
    """
    findings = _unreadable(table, facts)
    files = not isinstance(table.samples.images, np.ndarray)
    findings += copy_findings(table, byte_groups(facts), "identical bytes" if files else "identical pixels")
    if files:
        findings += [*_extensions(table, facts), *_orientations(table, facts)]
    return [*findings, *_sizes(table, facts), *_modes(table, facts), *_classes(table)]


def byte_groups(facts: Facts) -> list[list[int]]:
    """Return the indices of images with equal files, for each file that several have; see `equal_groups`."""
    return equal_groups([None if error else key for key, error in zip(facts.digest, facts.error, strict=True)])


def readable(facts: Facts) -> NDArray[np.int64]:
    """Return the indices of the images that can be read."""
    return np.flatnonzero([not error for error in facts.error])


def are_unusual(found: int, facts: Facts) -> bool:
    """Return whether so many images with something in common stand out: at most `UNUSUAL` of all."""
    return 0 < found <= max(1, UNUSUAL * len(facts.error))


def _unreadable(table: ImageTable, facts: Facts) -> list[Finding]:
    return [
        Finding("unreadable", name, detail=error)
        for name, error in zip(table.samples.names, facts.error, strict=True)
        if error
    ]


def _extensions(table: ImageTable, facts: Facts) -> Iterator[Finding]:
    known = Image.registered_extensions()
    for index in readable(facts).tolist():
        name = table.samples.names[index]
        actual = facts.header["format"][index].decode()
        suffix = PurePosixPath(name).suffix.lower()
        # Cameras and phones store several JPEGs in one file (MPO), and call it .jpg.
        if known.get(suffix, actual) not in (actual, "JPEG" if actual == "MPO" else actual):
            yield Finding("extension", name, detail=f"{actual} content in a {suffix} file")


def _orientations(table: ImageTable, facts: Facts) -> Iterator[Finding]:
    turned = np.flatnonzero(facts.header["orientation"] > 1).tolist()
    common = not are_unusual(len(turned), facts)
    for index in turned[:1] if common else turned:
        detail = f"EXIF orientation {facts.header['orientation'][index]}"
        if common:
            detail += f"; {len(turned)} of {len(table)} images have one"
        yield Finding("orientation", table.samples.names[index], detail=detail)


def group_findings(table: ImageTable) -> list[Finding]:
    """Return a finding if file names look as if splits divided groups; a run says so when it opens its images."""
    if table.samples.groups is not None or isinstance(table.samples.images, np.ndarray):
        return []
    found = suggest_groups(table.samples.names, table.samples.labels, [SPLITS[split] for split in table.splits])
    if found is None:
        return []
    detail = (
        f"{found.divided} of {found.groups} groups stand in more than one split; data.group_pattern={found.pattern} "
        f"keeps them together"
    )
    return [Finding("group", *found.examples, score=found.divided, detail=detail)]


def _sizes(table: ImageTable, facts: Facts) -> list[Finding]:
    whole = readable(facts)
    width, height = (facts.header[side][whole].astype(np.float64) for side in ("width", "height"))
    turned = facts.header["orientation"][whole] >= ROTATED
    width, height = np.where(turned, height, width), np.where(turned, width, height)
    findings = []
    for kind, values in (("size", np.sqrt(width * height)), ("aspect_ratio", width / height)):
        for position, times in _outliers(values, TIMES[kind], facts):
            size = f"{width[position]:.0f} × {height[position]:.0f} pixels"
            if kind == "size":
                usual = f"{times:.3g} times the usual side" if times > 1 else f"1/{1 / times:.3g} of the usual side"
            else:
                usual = f"width / height is {values[position]:.2f}, usually {np.median(values):.2f}"
            name = table.samples.names[whole[position]]
            findings.append(Finding(kind, name, score=max(times, 1 / times), detail=f"{size}: {usual}"))
    return findings


def _outliers(values: NDArray[np.float64], times: float, facts: Facts) -> list[tuple[int, float]]:
    """Return the positions of positive values far from the median, and how many times the median each is."""
    if len(values) == 0:
        return []
    logs = np.log(values)
    distances = logs - np.median(logs)
    far = max(np.log(times), DEVIATIONS * robust_deviation(logs))
    found = np.flatnonzero(np.abs(distances) > far).tolist()
    return [(index, float(np.exp(distances[index]))) for index in found] if are_unusual(len(found), facts) else []


def _modes(table: ImageTable, facts: Facts) -> Iterator[Finding]:
    modes = facts.header["mode"]
    counts = Counter(modes[readable(facts)].tolist())
    if not counts:
        return
    usual, _ = counts.most_common(1)[0]
    unusual = [mode for mode in counts if mode != usual]
    if are_unusual(sum(counts[mode] for mode in unusual), facts):
        for index in np.flatnonzero(np.isin(modes, unusual)).tolist():
            detail = f"mode {modes[index].decode()}, usually {usual.decode()}"
            yield Finding("mode", table.samples.names[index], detail=detail)


def _classes(table: ImageTable) -> Iterator[Finding]:
    present = np.unique(table.splits).tolist()
    counts = {
        SPLITS[split]: np.bincount(table.samples.labels[table.splits == split], minlength=len(table.class_names))
        for split in present
    }
    for label, name in enumerate(table.class_names):
        sizes = {split: int(of_split[label]) for split, of_split in counts.items()}
        if min(sizes.values()) == 0 or sizes.get("train", SMALL_CLASS) < SMALL_CLASS:
            detail = ", ".join(f"{split} {size}" for split, size in sizes.items())
            yield Finding("small_class", name, score=1 / (1 + sum(sizes.values())), detail=f"images: {detail}")
    yield from _imbalance(table.class_names, np.bincount(table.samples.labels, minlength=len(table.class_names)))


def _imbalance(class_names: Sequence[str], counts: NDArray[np.int64]) -> Iterator[Finding]:
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    if counts[largest] > IMBALANCE * max(1, counts[smallest]):
        ratio = counts[largest] / max(1, counts[smallest])
        detail = f"{counts[smallest]} images, and {class_names[largest]} has {counts[largest]}"
        yield Finding("imbalance", class_names[smallest], score=float(ratio), detail=detail)
