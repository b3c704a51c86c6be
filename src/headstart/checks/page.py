"""The page of a check: what was found, the worst first, with pictures and with what to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from headstart.checks.clean import CLEAN, Clean
from headstart.checks.findings import KINDS, Consequence, Finding, Kind
from headstart.checks.result import CheckResult
from headstart.checks.table import SPLITS, ImageTable
from headstart.config.schema import Config
from headstart.report.html import data_name, write_html
from headstart.report.image_grids import SIDE, Tile, load_thumbnail
from headstart.report.statistics import wilson
from headstart.utils.errors import DataError

# Most pairs, images and lines of a kind: 26 kinds of pictures of pure noise are below 10 MB then.
PAIRS, IMAGES, LINES = 12, 18, 50


@dataclass(frozen=True)
class Shown:
    """An image of the page, or what takes its place.

    Attributes:
        name: name of the image.
        label: its class and split.
        picture: data URI of a thumbnail; empty if the image cannot be read.
    """

    name: str
    label: str
    picture: str


@dataclass(frozen=True)
class Section:
    """A section of the page, about one kind of finding.

    Attributes:
        name: the kind's name, as in `--drop`.
        kind: its title, severity and advice.
        count: number of findings.
        pairs: the first findings on two images, with both of them; different images first.
        images: the first findings on one image, with it.
        lines: the first findings that are not about images.
    """

    name: str
    kind: Kind
    count: int
    pairs: list[tuple[Finding, Shown, Shown]]
    images: list[tuple[Finding, Shown]]
    lines: list[Finding]

    @property
    def left(self) -> int:
        """Return the number of findings that the page does not show."""
        return self.count - len(self.pairs) - len(self.images) - len(self.lines)


def write_page(
    result: CheckResult,
    config: Config,
    folder: Path,
    *,
    clean: Clean | None,
    overrides: Sequence[str],
    options: Sequence[str] = (),
) -> Path:
    """Write index.html, one file without links to others, and return its path.

    Args:
        result: what was found.
        config: the configuration that was checked.
        folder: the folder to write to, where the other files are.
        clean: the tables that were written; None without files to list.
        overrides: the overrides of the command line, for the commands that the page gives.
        options: the options of the command line, likewise.
    """
    table = result.table
    sizes = {split: int((table.splits == number).sum()) for number, split in enumerate(SPLITS)}
    return write_html(
        folder,
        "check.html.j2",
        data=data_name({f"data.{name}": value for name, value in asdict(config.data).items()}),
        images=len(table),
        classes=len(table.class_names),
        sizes={split: size for split, size in sizes.items() if size},
        tiers=result.tiers,
        sections=sections(table, result.findings),
        consequences=[consequence_row(consequence) for consequence in result.consequences],
        notes=result.notes,
        clean=clean if clean and clean.train else None,
        clean_name=CLEAN,
        train_command=clean.command(config.data, folder, overrides) if clean else "",
        command=shlex.join(["headstart", "check", *overrides, *options]),
    )


def sections(table: ImageTable, findings: Iterable[Finding]) -> list[Section]:
    """Return a section for each kind of finding; findings are in the order of `ordered`."""
    indices = {name: index for index, name in enumerate(table.samples.names)}
    return [
        _section(table, indices, kind, list(of_kind))
        for kind, of_kind in groupby(findings, key=lambda found: found.kind)
    ]


def _section(table: ImageTable, indices: dict[str, int], kind: str, findings: list[Finding]) -> Section:
    pairs = [found for found in findings if found.other in indices and found.image in indices]
    images = [found for found in findings if not found.other and found.image in indices]
    lines = [found for found in findings if found.image not in indices]
    return Section(
        kind,
        KINDS[kind],
        len(findings),
        [(f, *(_shown(table, indices[name]) for name in (f.image, f.other))) for f in _varied(pairs)[:PAIRS]],  # type: ignore[misc]
        [(found, _shown(table, indices[found.image])) for found in images[:IMAGES]],
        lines[:LINES],
    )


def _varied(pairs: Sequence[Finding]) -> list[Finding]:
    """Return pairs with those first whose images are in none before: one picture in many files would fill a section."""
    seen, first, rest = set[str](), list[Finding](), list[Finding]()
    for found in pairs:
        (rest if {found.image, found.other} & seen else first).append(found)
        seen |= {found.image, found.other}
    return first + rest


def _shown(table: ImageTable, index: int) -> Shown:
    try:
        picture = Tile(load_thumbnail(table.samples, index, 2 * SIDE), ()).data_uri()
    except DataError:
        picture = ""
    return Shown(table.samples.names[index], table.describe(index), picture)


def consequence_row(consequence: Consequence) -> dict[str, object]:
    """Return the values of a row of the table of consequences: accuracies on all images and on clean ones.

    Accuracies are (value, lower bound, upper bound) with the 95 % interval; None without images.
    """
    return {
        "split": consequence.split,
        "images": consequence.images,
        "clean": consequence.clean,
        "with_copies": _accuracy(consequence.correct, consequence.images),
        "without": _accuracy(consequence.clean_correct, consequence.clean),
        "of_copies": _accuracy(consequence.correct - consequence.clean_correct, consequence.images - consequence.clean),
    }


def _accuracy(correct: int, images: int) -> tuple[float, float, float] | None:
    return (correct / images, *wilson(correct, images)) if images else None
