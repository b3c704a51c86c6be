"""What the pixels of images tell: equal ones in different files, and images in which there is little to see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.checks.copies import copy_findings, equal_groups
from headstart.checks.facts import Facts
from headstart.checks.files import are_unusual, readable
from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable
from headstart.data.image_io import read_image
from headstart.utils.errors import DataError


class _Oddity(NamedTuple):
    """What is odd about the pixels of an image.

    Attributes:
        kind: the kind of the finding.
        fact: a field of `PIXELS`.
        threshold: values between this one and `extreme` are odd.
        extreme: the value that is odd most.
        text: what is said, with the value.
    """

    kind: str
    fact: str
    threshold: float
    extreme: float
    text: str


# None of 2,642 photographs of vehicles, insects and pets is blank, bright or blurred by these thresholds, and one is
# dark. Two have little information: the "image not found" of a photo site, and an ant on white.
ODDITIES = (
    # A small copy averages the noise of a camera to less.
    _Oddity("blank", "range", 8, 0, "all values are within {:.0f} of 255"),
    # 99 % of the pixels below a third of full brightness; 95 % above nine tenths.
    _Oddity("dark", "high", 80, 0, "99 % of the pixels have at most {:.0f} of 255"),
    _Oddity("bright", "low", 230, 255, "95 % of the pixels have more than {:.0f} of 255"),
    # 30 % of the 8 bits that 256 levels can have.
    _Oddity("low_information", "entropy", 2.4, 0, "the brightness has an entropy of {:.1f} of 8 bits"),
    # The photographs have 0.14 and more. Blurred by 1/50 of their side, most have less than the threshold.
    _Oddity("blurred", "sharpness", 0.08, 0, "variance of the Laplacian / variance of the brightness is {:.3f}"),
)
# Less is not worth cropping.
LETTERBOXED = _Oddity("letterboxed", "letterbox", 0.08, 1, "uniform borders take {:.0%} of the side")


def pixel_findings(table: ImageTable, facts: Facts) -> list[Finding]:
    """Return what is wrong with the pixels of images.

    Copies with equal bytes are left to `files.file_findings`: of these only the first takes part here.

    Args:
        table: the images.
        facts: facts of them, with their pixels.
    """
    groups = []
    for group in pixel_groups(table, facts):
        first = {facts.digest[index]: index for index in reversed(group)}
        if len(first) > 1:
            groups.append(sorted(first.values()))
    return [*copy_findings(table, groups, "identical pixels in different files"), *_oddities(table, facts)]


def pixel_groups(table: ImageTable, facts: Facts) -> list[list[int]]:
    """Return the indices of images with equal pixels, for each picture that several show.

    Images with equal keys are candidates. If their files differ, they are decoded at full size and compared.

    Args:
        table: the images.
        facts: facts of them, with their pixels.
    """
    assert facts.pixels is not None
    keys = [None if error else bytes(key) for key, error in zip(facts.pixels["key"], facts.error, strict=True)]
    groups = []
    for candidates in equal_groups(keys):
        files = {facts.digest[index]: index for index in candidates}
        if len(files) == 1:
            groups.append(candidates)
            continue
        pixels = {digest: _full_digest(table.samples.images, index) for digest, index in files.items()}
        equal = equal_groups([pixels[facts.digest[index]] for index in candidates])
        groups += [[candidates[position] for position in group] for group in equal]
    return groups


def _full_digest(images: Sequence[str] | NDArray[np.uint8], index: int) -> bytes | None:
    """Return the SHA-256 of an image's size and upright pixels; None if it cannot be read any more."""
    if isinstance(images, np.ndarray):
        pixels = images[index]
    else:
        try:
            pixels = np.asarray(read_image(images[index]))
        except DataError:
            return None
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def _oddities(table: ImageTable, facts: Facts) -> list[Finding]:
    """Return the images with odd pixels. Of `ODDITIES`, only the first that an image has is said."""
    whole = np.zeros(len(table), dtype=bool)
    whole[readable(facts)] = True
    findings: list[Finding] = []
    rest = whole.copy()
    for oddity in ODDITIES:
        scores = _scores(oddity, facts, rest)
        findings += _findings(oddity, table, facts, scores)
        rest &= scores == 0
    return [*findings, *_findings(LETTERBOXED, table, facts, _scores(LETTERBOXED, facts, whole))]


def _scores(oddity: _Oddity, facts: Facts, among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how odd each image is, from just above 0 at the threshold to 1 at the extreme; 0 if it is not odd."""
    assert facts.pixels is not None
    distance = (facts.pixels[oddity.fact].astype(np.float64) - oddity.threshold) / (oddity.extreme - oddity.threshold)
    return np.where(among, distance.clip(0, 1), 0)


def _findings(oddity: _Oddity, table: ImageTable, facts: Facts, scores: NDArray[np.float64]) -> Iterator[Finding]:
    assert facts.pixels is not None
    found = np.flatnonzero(scores).tolist()
    # X-rays are dark, scans are bright, and both are what they should be. Nobody wants images of one colour.
    if oddity.kind != "blank" and not are_unusual(len(found), facts):
        return
    for index in found:
        detail = oddity.text.format(facts.pixels[oddity.fact][index])
        yield Finding(oddity.kind, table.samples.names[index], score=float(scores[index]), detail=detail)
