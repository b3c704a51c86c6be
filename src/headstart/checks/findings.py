"""What a check of images finds: its kinds, in the order in which they matter, and the table of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headstart.utils.errors import ConfigError, suggestion
from headstart.utils.files import csv_text

TIERS = ("files", "pixels", "features")
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        title: what was found, as a heading of the page.
        severity: "error" if results are wrong or training stops, "warning" if they may be, "note" otherwise.
        advice: what to do about it.
    """

    title: str
    severity: Severity
    advice: str


# By name, as in `--fail-on` and `--drop`; in the order of the page and of issues.csv: what harms results most is first.
KINDS = {
    "unreadable": Kind(
        "Images that cannot be read", "error", "Replace the file, or take it out of the data: training stops there."
    ),
    "splits": Kind(
        "Splits that cannot be made", "error", "Do what is said there: training stops with the same message."
    ),
    "leak": Kind(
        "The same picture in two splits",
        "error",
        "Keep the copies in one split: train with clean.csv, or take one of them out. They make the result too good.",
    ),
    "conflict": Kind(
        "The same picture with different labels", "error", "Decide for one label, or take the copies out."
    ),
    "near_leak": Kind(
        "Nearly the same picture in two splits", "error", "Keep the copies in one split: train with clean.csv."
    ),
    "near_conflict": Kind(
        "Nearly the same picture with different labels", "warning", "Decide for one label, or take one of them out."
    ),
    "wrapper": Kind(
        "The label can be read off the file, without its content",
        "warning",
        "Store all classes alike: same source, size, format and quality. A network learns such differences instead of "
        "the content.",
    ),
    "group": Kind(
        "File names of one group in two splits", "warning", "Keep the groups together by the data.group_pattern given."
    ),
    "label": Kind(
        "Labels that may be wrong",
        "warning",
        "Look at them, worst first, and correct what is wrong: images that are hard to tell are among them.",
    ),
    "shift": Kind(
        "Train and test differ", "warning", "Find out why: the result on test may not be that on new images of either."
    ),
    "outlier": Kind("Images that look unlike all others", "warning", "Look at them: do they belong to the data?"),
    "blank": Kind("Images of one colour", "warning", "Replace them, or take them out: there is nothing to see."),
    "small_class": Kind(
        "Classes with too few images", "warning", "Add images, or take the class out: its accuracy says little."
    ),
    "imbalance": Kind(
        "Classes of very different sizes",
        "note",
        "Compare macro_accuracy, and consider loss.class_weights=balanced or data.sampling=balanced.",
    ),
    "copy": Kind("The same picture twice", "warning", "Take the copies out: they count double."),
    "near_copy": Kind("Nearly the same picture twice", "note", "Keep them in one split: train with clean.csv."),
    "dark": Kind("Dark images", "note", "Look at them: is there something to see?"),
    "bright": Kind("Bright images", "note", "Look at them: is there something to see?"),
    "blurred": Kind("Blurred images", "note", "Look at them: is there something to see?"),
    "low_information": Kind("Images with little in them", "note", "Look at them: is there something to see?"),
    "letterboxed": Kind("Images with uniform borders", "note", "Crop the borders: they take pixels from the content."),
    "extension": Kind(
        "Extensions that do not match the content", "note", "Rename the files: other programs go by the extension."
    ),
    "size": Kind("Images of unusual size", "note", "Look at them: do they come from elsewhere?"),
    "aspect_ratio": Kind(
        "Images of unusual aspect ratio", "note", "Look at them: the crop of the network cuts most of them off."
    ),
    "mode": Kind("Images of an unusual colour mode", "note", "Look at them: do they come from elsewhere?"),
    "orientation": Kind(
        "Images that EXIF data turn",
        "note",
        "headstart turns them upright; other programs may not: store them upright.",
    ),
}
# These are about columns, classes, splits or patterns of names; all others are about images, which may be left out.
NOT_OF_IMAGES = ("splits", "wrapper", "group", "shift", "small_class", "imbalance")


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        kind: a key of `KINDS`.
        image: name of the image, or of the class or split that it is about.
        other: name of the other image of a pair; otherwise empty.
        score: how sure or how strong it is, larger is worse; its unit depends on the kind.
        detail: what was seen, in a few words.
    """

    kind: str
    image: str
    other: str = ""
    score: float = 1.0
    detail: str = ""


@dataclass(frozen=True)
class Consequence:
    """What copies in two splits do to a result: the accuracy of a head on a split, with and without them.

    Attributes:
        split: "val" or "test".
        images: number of its images.
        correct: number of them that are classified correctly.
        clean: number of its images without a copy in an earlier split.
        clean_correct: number of these that are classified correctly.
    """

    split: str
    images: int
    correct: int
    clean: int
    clean_correct: int


def check_names(names: Iterable[str], known: Collection[str], option: str) -> None:
    """Check that names, of tiers or of kinds, are among those that an option takes.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}={name}: expected some of {', '.join(known)}.{suggestion(name, known)}")


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by kind, in the order of `KINDS`, and the worst of a kind first."""
    ranks = {kind: rank for rank, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: (ranks[finding.kind], -finding.score, finding.image, finding.other))


def issues_csv(findings: Sequence[Finding]) -> str:
    """Return findings as CSV text: image, other image, kind, score, severity, detail and suggestion."""
    rows: list[tuple[object, ...]] = [("image", "other_image", "kind", "score", "severity", "detail", "suggestion")]
    for found in findings:
        kind = KINDS[found.kind]
        rows.append(
            (found.image, found.other, found.kind, round(found.score, 6), kind.severity, found.detail, kind.advice)
        )
    return csv_text(rows)
