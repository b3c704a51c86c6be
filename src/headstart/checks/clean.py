"""The table that a check leaves: the images to train on, with copies of a picture in one group."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from headstart.checks.copies import connected_groups, equal_groups
from headstart.checks.findings import Finding
from headstart.checks.table import SPLITS, ImageTable
from headstart.config.compose import quote
from headstart.config.data_schema import Data
from headstart.data.splits import Indices
from headstart.utils.files import csv_text, write_text

CLEAN, CLEAN_TEST = "clean.csv", "clean_test.csv"
COLUMNS = ("image", "label", "group")
Row = tuple[str, str, str]
COPIES = ("copy", "near_copy")
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a name that is not UTF-8
USUAL = {"val_fraction": 0.15, "test_fraction": 0.0, "split_seed": 0}  # of data=csv


@dataclass(frozen=True)
class Clean:
    """The tables for training without what was found.

    Attributes:
        root: the folder that the names of the images are relative to.
        train: the rows of clean.csv: image, label and group; images of one group stay in one split.
        test: the rows of clean_test.csv, which are those of the source's own test split; empty if it has none.
        notes: what was left out, and why.
    """

    root: Path
    train: list[Row]
    test: list[Row]
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Write clean.csv and, if there is a test split, clean_test.csv; names are not escaped for spreadsheets."""
        for name, rows in ((CLEAN, self.train), (CLEAN_TEST, self.test)):
            if rows:
                write_text(folder / name, csv_text([COLUMNS, *rows], quoted=False))

    def command(self, data: Data, folder: Path, overrides: Sequence[str]) -> str:
        """Return the command that trains with the tables in a folder.

        Args:
            data: the settings of the data that were checked, whose splits are kept.
            folder: the folder that the tables were written to.
            overrides: the overrides of the check; those of the data source are replaced.
        """
        values = {"root": str(self.root), "images": ".", "train_csv": str((folder / CLEAN).resolve())}
        if self.test:
            values["test_csv"] = str((folder / CLEAN_TEST).resolve())
        values["group_column"] = "group"
        common = {f.name for f in fields(Data)} - {"source", "group_pattern"}
        kept = [text for text in overrides if _stays(text.partition("=")[0].lstrip("+"), common)]
        given = {text.partition("=")[0] for text in kept}
        for name, usual in USUAL.items():
            value = getattr(data, name)
            if value != usual and f"data.{name}" not in given and not (name == "test_fraction" and self.test):
                values[name] = str(value)
        settings = [f"data.{name}={_plain(value)}" for name, value in values.items()]
        return shlex.join(["python", "train.py", "data=csv", *settings, *kept])


def _stays(key: str, common: Collection[str]) -> bool:
    """Tell whether an override is for any data source, and not for the one that was checked."""
    return key != "data" and (not key.startswith("data.") or key.removeprefix("data.") in common)


def _plain(value: str) -> str:
    return value if re.fullmatch(r"[\w./-]+", value) else quote(value)


def clean_tables(table: ImageTable, findings: Iterable[Finding], *, tested: bool, drop: Collection[str] = ()) -> Clean:
    """Return the tables for training without what was found.

    Copies of a picture share a group, and so do the images of a group that the data have. Training images that are
    copies of images of the source's own test split are left out, and the test split stays as it is.

    Args:
        table: the images, which are files.
        findings: what was found.
        tested: whether the images of "test" are the source's own test split; otherwise all splits are made anew.
        drop: kinds of findings whose images are left out: of "copy" all but the first of a group, of "conflict" and
            "near_conflict" the whole group, and of other kinds the image.
    """
    findings = list(findings)
    copies = copy_groups(table, findings, COPIES)
    own_test = (table.splits == SPLITS.index("test")) & tested
    of_test = [index for group in copies if own_test[group].any() for index in group if not own_test[index]]
    left_out = np.zeros(len(table), dtype=bool)
    left_out[[*of_test, *_dropped(table, findings, drop)]] = True
    left_out &= ~own_test
    writable = np.array([_is_writable(*texts) for texts in _texts(table)], dtype=bool)
    kept = np.flatnonzero(~left_out & writable)
    train, test = list[Row](), list[Row]()
    for index, row in zip(kept.tolist(), _rows(table, kept, copies), strict=True):
        (test if own_test[index] else train).append(row)
    unwritable = [table.samples.names[index] for index in np.flatnonzero(~left_out & ~writable).tolist()]
    return Clean(_root(table), train, test, _notes(len(of_test), int(left_out.sum()), unwritable))


def _texts(table: ImageTable) -> Iterator[tuple[str, ...]]:
    """Yield what a row needs of each image: its name, its class and, if the data have groups, its group."""
    samples = table.samples
    for index, label in enumerate(samples.labels.tolist()):
        group = () if samples.groups is None else (samples.groups[index],)
        yield (samples.names[index], table.class_names[label], *group)


def _is_writable(*cells: str) -> bool:
    """Tell whether data=csv reads cells as they are: it strips spaces, and its tables are in UTF-8."""
    return all(cell and cell == cell.strip() and not SURROGATE.search(cell) for cell in cells)


def copy_groups(table: ImageTable, findings: Iterable[Finding], kinds: Collection[str]) -> list[list[int]]:
    """Return the groups of images that findings of these kinds connect, as indices into the table."""
    indices = {name: index for index, name in enumerate(table.samples.names)}
    return connected_groups((indices[f.image], indices[f.other]) for f in findings if f.kind in kinds)


def _dropped(table: ImageTable, findings: Sequence[Finding], drop: Collection[str]) -> Iterator[int]:
    """Yield the indices of the images that are left out because of the kinds of their findings."""
    for kind, copy in (("conflict", "copy"), ("near_conflict", "near_copy")):
        if kind in drop:
            in_conflict = {found.image for found in findings if found.kind == kind}
            for group in copy_groups(table, findings, [copy]):
                if any(table.samples.names[index] in in_conflict for index in group):
                    yield from group
    names = {found.image for found in findings if found.kind in drop}
    yield from (index for index, name in enumerate(table.samples.names) if name in names)


def _rows(table: ImageTable, kept: Indices, copies: Sequence[Sequence[int]]) -> Iterator[Row]:
    """Yield image, label and group of the images that are kept; a group is named by the user's group or an image."""
    samples = table.samples
    own = [] if samples.groups is None else equal_groups(samples.groups)
    present = set(kept.tolist())
    joined = [[index for index in group if index in present] for group in (*copies, *own)]
    pairs = ((group[0], other) for group in joined for other in group[1:])
    firsts = {index: group[0] for group in connected_groups(pairs) for index in group}
    names = samples.names if samples.groups is None else samples.groups
    for index in kept.tolist():
        yield samples.names[index], table.class_names[samples.labels[index]], names[firsts.get(index, index)]


def _root(table: ImageTable) -> Path:
    """Return the folder that names are relative to."""
    path, name = str(table.samples.images[0]), table.samples.names[0]
    return Path(path.removesuffix(name))


def _notes(of_test: int, left_out: int, unwritable: Sequence[str]) -> list[str]:
    """Return a sentence for each reason for which images are left out."""
    notes = []
    if of_test:
        notes.append(f"{_counted(of_test)} left out because the test split has the same picture")
    if left_out > of_test:
        notes.append(f"{_counted(left_out - of_test)} left out by --drop")
    if unwritable:
        notes.append(
            f"{_counted(len(unwritable))} left out because a table cannot hold the name, class or group, such as "
            f"{unwritable[0]!r}: rename what begins or ends with a space, or is not UTF-8"
        )
    return notes


def _counted(images: int) -> str:
    return f"{images:,} images are" if images != 1 else "1 image is"
