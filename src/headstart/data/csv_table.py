"""Where are the images? In a folder, with a table of their labels."""

from __future__ import annotations

import csv as csv_format
import io
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from headstart.data.dataset import LabelledImages, Samples, file_samples
from headstart.utils.errors import DataError
from headstart.utils.files import regular

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # as spreadsheets write them, by their language
HEADER = 2**16  # characters that a first line may have
DIGITS = 18  # of a label that is a number; a longer one is a text


def csv(
    root: str | Path,
    *,
    images: str = "images",
    train_csv: str = "train.csv",
    test_csv: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    classes: Mapping[str, str] | None = None,
) -> LabelledImages:
    """A folder of images and a table of their labels.

    Args:
        root: what the next three are relative to, unless they are absolute.
        images: the folder that the file names in the table are relative to.
        train_csv: a table with a header, or a pattern (`*train.csv`) that exactly one file matches.
        test_csv: likewise, for the test split; without a label column it is only counted.
        image_column: the column of file names.
        label_column: the column of labels.
        classes: label in the table -> class name, in the order that classes are to have; None takes the labels
            themselves, sorted (as numbers if all are).

    Returns:
        "train", and "test" where `test_csv` has labels.

    Raises:
        DataError: a table, column, label or image is missing, a label is unknown, or a file name leaves the
            folder. The message names the table and row.
    """
    folder = Path(root, images)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of images. Give its parent as data.root=FOLDER, or data.images=FOLDER."
        )
    train = _Table.read(Path(root, train_csv), image_column, label_column)
    if train.labels is None:
        raise DataError(
            f"{train.path} has no column '{label_column}'; its columns are {', '.join(train.columns)}. "
            f"Name the column of labels by data.label_column=NAME."
        )
    names = dict(classes) if classes else {label: label for label in _sorted(set(train.labels))}
    if len(names) < 2:
        raise DataError(f"{train.path}: column '{label_column}' has a single label; at least two are needed.")
    if len(set(names.values())) < len(names):
        raise DataError(f"data.classes gives one name to several labels: {', '.join(names.values())}.")
    splits, notes = {"train": train.samples(folder, names)}, list(train.notes)
    for label in names:
        if label not in train.labels:
            raise DataError(f"{train.path} has no image with the label {label}, which data.classes names.")
    if test_csv is not None:
        test = _Table.read(Path(root, test_csv), image_column, label_column)
        notes += test.notes
        if test.labels is None:
            notes.append(
                f"{test.path} has no column '{label_column}' (it has {', '.join(test.columns)}): "
                f"{len(test.files)} images to predict, no test split"
            )
        else:
            splits["test"] = test.samples(folder, names)
            both = set(splits["test"].names) & set(splits["train"].names)
            if both:
                raise DataError(
                    f"{len(both)} images are both in {train.path} and in {test.path}, such as {min(both)}: "
                    f"a test on them would be too good. Take them out of one table."
                )
    return LabelledImages(tuple(names.values()), splits, notes)


class Table(NamedTuple):
    """A table with a header.

    Attributes:
        columns: their names.
        rows: for every row the line in the file and its values by column, without spaces around them; what a short
            row lacks is empty.
        notes: what a user should know of how it was read.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    notes: list[str]


def read_table(path: Path, column: str | None = None) -> Table:
    """Reads a csv with a header, in UTF-8 or UTF-16, with commas, semicolons or tabs between the columns.

    Args:
        path: the file.
        column: one that it should have, which tells what stands between the columns; None takes what makes most.

    Raises:
        DataError: it is no table.
    """
    try:
        data = regular(path).read_bytes()
        encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
        text = data.decode(encoding)
        delimiter = _delimiter(text, column)
        reader = csv_format.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
        rows = [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except (UnicodeDecodeError, csv_format.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read as a table ({why}). Save it as a csv in UTF-8.") from None
    told = [DELIMITERS[delimiter]] if delimiter != "," else []
    told += ["UTF-16"] if encoding == "utf-16" else []
    return Table(columns, rows, [f"{path} is read as a table with {' and in '.join(told)}"] if told else [])


def _delimiter(text: str, column: str | None) -> str:
    """What stands between the columns: what gives the one that is asked for, then what gives most; else a comma."""
    header = text[:HEADER].lstrip("\r\n").splitlines()[:1]

    def found(delimiter: str) -> tuple[bool, int]:
        columns = [name.strip() for name in next(csv_format.reader(header, delimiter=delimiter), [])]
        return column in columns, len(columns)

    return max(DELIMITERS, key=found)


def _sorted(labels: set[str]) -> list[str]:
    """Sorted as numbers if all are whole numbers, so that 10 comes after 9."""
    numbers = all(label.isdecimal() and len(label) <= DIGITS for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


@dataclass(frozen=True)
class _Table:
    """A table of file names and, possibly, labels."""

    path: Path
    columns: list[str]
    lines: list[int]  # where each row stands in the file
    files: list[str]
    labels: list[str] | None
    notes: list[str]

    @classmethod
    def read(cls, pattern: Path, image_column: str, label_column: str) -> _Table:
        path = _one_file(pattern)
        columns, rows, notes = read_table(path, image_column)
        if image_column not in columns:
            raise DataError(
                f"{path} has no column '{image_column}'; its columns are {', '.join(columns) or 'none'}. "
                f"Name the column of file names by data.image_column=NAME."
            )
        if not rows:
            raise DataError(f"{path} has a header and no rows.")
        files = [row[image_column] for _, row in rows]
        labels = [row[label_column] for _, row in rows] if label_column in columns else None
        return cls(path, columns, [line for line, _ in rows], files, labels, notes)

    def samples(self, folder: Path, names: Mapping[str, str]) -> Samples:
        """The labelled images of this table.

        Args:
            folder: of the images.
            names: label -> class name, in class order.
        """
        indices = {label: index for index, label in enumerate(names)}
        paths, labels = [], []
        for line, file, label in zip(self.lines, self.files, self.labels or [], strict=True):
            where = f"{self.path}, line {line}"
            paths.append(inside(folder, file, where))
            if not label:
                raise DataError(f"{where}: the label of {file} is empty. Fill it in or remove the row.")
            if label not in indices:
                raise DataError(
                    f"{where}: the label of {file} is {label}, which is none of the classes {', '.join(names)}."
                )
            labels.append(indices[label])
        missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 (of a hundred thousand files)
        if missing:
            why = "is no regular file" if os.path.exists(missing[0]) else "is not there"  # noqa: PTH110
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{self.path} names {missing[0]}, which {why}{others}.")
        path, times = Counter(paths).most_common(1)[0]
        if times > 1:
            raise DataError(f"{self.path} names {path} {times} times: an image may be in one row only.")
        return file_samples(paths, labels, folder)


def _one_file(pattern: Path) -> Path:
    if pattern.is_file():
        return pattern
    matches = sorted(pattern.parent.glob(pattern.name)) if pattern.parent.is_dir() else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        found = ", ".join(str(match) for match in matches)
        raise DataError(f"{pattern} matches more than one table: {found}. Name one.")
    raise DataError(f"{pattern}: no such table. Give it as data.train_csv=FILE or data.test_csv=FILE.")


def inside(folder: Path, file: str, where: str) -> str:
    """The path of a file that a table names.

    Raises:
        DataError: it leads out of the folder of images.
    """
    inner = os.path.normpath(file)
    if not file or inner == "." or Path(inner).parts[0] == ".." or Path(inner).is_absolute():
        raise DataError(
            f"{where}: the file name '{file}' does not stay inside {folder}. Names are relative to that folder."
        )
    return str(folder / inner)
