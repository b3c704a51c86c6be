"""Data source csv: a folder of images and a table of their labels."""

from __future__ import annotations

import csv as csv_format
import io
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from headstart.data.dataset import LabelledImages, Samples, file_samples
from headstart.utils.errors import DataError
from headstart.utils.files import regular_file

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # spreadsheets choose by language
MAX_HEADER = 2**16  # maximum length of the first line, in characters
MAX_DIGITS = 18  # maximum length of a label that is sorted as a number


def csv(
    root: str | Path,
    *,
    images: str = "images",
    train_csv: str = "train.csv",
    test_csv: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    group_column: str | None = None,
    classes: Mapping[str, str] | None = None,
) -> LabelledImages:
    """Return the images of a folder with the labels of a table.

    Args:
        root: folder that `images`, `train_csv` and `test_csv` are relative to, unless they are absolute.
        images: folder that the file names in the table are relative to.
        train_csv: a table with a header, or a glob pattern (`*train.csv`) that exactly one file matches.
        test_csv: a table or pattern for the test split. Images without a label column are counted in a note only.
        image_column: the column of file names.
        label_column: the column of labels.
        group_column: the column of groups, such as patients, whose images stay in one split. None makes no groups.
        classes: maps a label in the table to its class name, in class order. None uses the labels themselves,
            sorted (as numbers if all of them are whole numbers).

    Returns:
        The split "train", and "test" if `test_csv` has labels.

    Raises:
        DataError: a table, column, label or image is missing, or a label is unknown. An image is listed twice or in
            both tables, or a file name points outside the folder. The message names the table and, where it can,
            the line.
    """
    folder = Path(root, images)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images. Give data.images=FOLDER, or its parent as data.root.")
    samples = partial(
        _samples, folder=folder, image_column=image_column, label_column=label_column, group_column=group_column
    )
    train = _read_listing(Path(root, train_csv), image_column)
    _check_column(train, label_column, "labels by data.label_column")
    labels = {row[label_column] for _, row in train.rows}
    names = _names_of_labels(labels, classes, f"{train.path}: column '{label_column}'")
    splits, notes = {"train": samples(train, names)}, list(train.notes)
    for label in names:
        if label not in labels:
            raise DataError(f"{train.path} has no image with the label {label}, which data.classes names.")
    if test_csv is not None:
        test = _read_listing(Path(root, test_csv), image_column)
        notes += test.notes
        if label_column not in test.columns:
            notes.append(
                f"{test.path} has no column '{label_column}' (it has {', '.join(test.columns)}): "
                f"{len(test.rows)} images to predict, no test split"
            )
        else:
            splits["test"] = samples(test, names)
            _check_disjoint(splits, train.path, test.path)
    return LabelledImages(tuple(names.values()), splits, notes)


def _names_of_labels(labels: set[str], classes: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """Return the class name of each label, in class order."""
    names = dict(classes) if classes else {label: label for label in _sorted(labels)}
    if len(names) < 2:
        raise DataError(f"{where} has a single label; at least two are needed.")
    if len(set(names.values())) < len(names):
        raise DataError(f"data.classes gives one name to several labels: {', '.join(names.values())}.")
    return names


def _check_disjoint(splits: Mapping[str, Samples], train: Path, test: Path) -> None:
    both = set(splits["test"].names) & set(splits["train"].names)
    if both:
        raise DataError(
            f"{len(both)} images are both in {train} and in {test}, such as {min(both)}: a test on them would be too "
            f"good. Take them out of one table."
        )


class Table(NamedTuple):
    """A table with a header.

    Attributes:
        columns: names of the columns.
        rows: for each row, its line number in the file and its values by column name. Values are stripped of
            whitespace; values that a short row lacks are empty.
        notes: messages for the user about how the table was read.
        path: the file.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    notes: list[str]
    path: Path


def read_table(path: Path, column: str | None = None) -> Table:
    """Read a csv file with a header, in UTF-8 or UTF-16, with commas, semicolons or tabs as delimiter.

    Args:
        path: the file.
        column: an expected column, which helps to detect the delimiter. None detects it by the number of columns.

    Raises:
        DataError: the file cannot be read as a table.
    """
    try:
        data = regular_file(path).read_bytes()
        encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
        text = data.decode(encoding)
        delimiter = _delimiter(text, column)
        reader = csv_format.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
        rows = [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except (UnicodeDecodeError, csv_format.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read as a table ({why}). Save it as a csv in UTF-8.") from None
    unusual = [DELIMITERS[delimiter]] if delimiter != "," else []
    unusual += ["UTF-16"] if encoding == "utf-16" else []
    notes = [f"{path} is read as a table with {' and in '.join(unusual)}"] if unusual else []
    return Table(columns, rows, notes, path)


def _delimiter(text: str, column: str | None) -> str:
    """Detect the delimiter: prefer one that yields `column`, then the one that yields most columns, then a comma."""
    header = text[:MAX_HEADER].lstrip("\r\n").splitlines()[:1]

    def preference(delimiter: str) -> tuple[bool, int]:
        columns = [name.strip() for name in next(csv_format.reader(header, delimiter=delimiter), [])]
        return column in columns, len(columns)

    return max(DELIMITERS, key=preference)


def _sorted(labels: set[str]) -> list[str]:
    """Sort labels, as numbers if all of them are whole numbers, so that 10 comes after 9."""
    numbers = all(label.isdecimal() and len(label) <= MAX_DIGITS for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


def _read_listing(pattern: Path, image_column: str) -> Table:
    """Read a table that lists image files."""
    path = _one_file(pattern)
    table = read_table(path, image_column)
    _check_column(table, image_column, "file names by data.image_column")
    if not table.rows:
        raise DataError(f"{path} has a header and no rows.")
    return table


def _check_column(table: Table, column: str, remedy: str) -> None:
    if column not in table.columns:
        raise DataError(
            f"{table.path} has no column '{column}'; its columns are {', '.join(table.columns) or 'none'}. Name the "
            f"column of {remedy}=NAME."
        )


def _samples(
    table: Table,
    names: Mapping[str, str],
    folder: Path,
    image_column: str,
    label_column: str,
    group_column: str | None,
) -> Samples:
    """Return the labelled images of a table, whose labels are the keys of `names`, in class order."""
    indices = {label: index for index, label in enumerate(names)}
    paths, labels = [], []
    for line, row in table.rows:
        where, file, label = f"{table.path}, line {line}", row[image_column], row[label_column]
        paths.append(path_inside(folder, file, where))
        if not label:
            raise DataError(f"{where}: the label of {file} is empty. Fill it in or remove the row.")
        if label not in indices:
            raise DataError(
                f"{where}: the label of {file} is {label}, which is none of the classes {', '.join(names)}."
            )
        labels.append(indices[label])
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 (faster for a hundred thousand files)
    if missing:
        why = "is not a regular file" if os.path.exists(missing[0]) else "does not exist"  # noqa: PTH110
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{table.path} names {missing[0]}, which {why}{others}.")
    path, rows = Counter(paths).most_common(1)[0]
    if rows > 1:
        raise DataError(f"{table.path} names {path} {rows} times: an image may be in one row only.")
    groups = None if group_column is None else _groups(table, group_column, image_column)
    return replace(file_samples(paths, labels, folder), groups=groups)


def _groups(table: Table, group_column: str, image_column: str) -> list[str]:
    """Return the group of each row of a table."""
    _check_column(table, group_column, "groups by data.group_column")
    empty = [(line, row[image_column]) for line, row in table.rows if not row[group_column]]
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{table.path}, line {empty[0][0]}: the group of {empty[0][1]} is empty{others}. Fill in column "
            f"'{group_column}'; an image that belongs with no other gets a group of its own."
        )
    return [row[group_column] for _, row in table.rows]


def _one_file(pattern: Path) -> Path:
    if pattern.is_file():
        return pattern
    matches = sorted(pattern.parent.glob(pattern.name)) if pattern.parent.is_dir() else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(f"{pattern} matches more than one table: {', '.join(map(str, matches))}. Name one.")
    raise DataError(f"{pattern}: no such table. Give it as data.train_csv=FILE or data.test_csv=FILE.")


def path_inside(folder: Path, file: str, where: str) -> str:
    """Return the path of a file that a table names.

    Args:
        folder: the folder of the images.
        file: file name, relative to the folder.
        where: the table and line, for the message.

    Raises:
        DataError: the file name is empty, absolute or points outside the folder.
    """
    inner = os.path.normpath(file)
    if not file or inner == "." or Path(inner).parts[0] == ".." or Path(inner).is_absolute():
        raise DataError(
            f"{where}: the file name '{file}' does not stay inside {folder}. Names are relative to that folder."
        )
    return str(folder / inner)
