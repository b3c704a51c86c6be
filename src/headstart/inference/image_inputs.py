"""Which images are meant: files, folders, patterns and tables, as they are given on a command line."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from headstart.data.csv_table import inside, read_table
from headstart.data.image_folder import skipped_notes, walk_images
from headstart.data.image_io import EXTENSIONS
from headstart.utils.errors import ConfigError, DataError

TABLE = ".csv"
EXTENSIONS_TEXT = " ".join(EXTENSIONS)


class Input(NamedTuple):
    """An image that is asked for.

    Attributes:
        name: what it was called.
        path: where it is.
        error: why there is none, if that is known before it is read.
    """

    name: str
    path: str
    error: DataError | None = None


@dataclass
class Inputs:
    """The images that are asked for.

    Attributes:
        images: in order.
        notes: what a user should know, such as what was skipped.
        column: the column of a table that names them, if the images stand in tables.
    """

    images: list[Input] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    column: str | None = None


def find_images(
    sources: Sequence[str], *, images: str | None = None, column: str | None = None, usual: str | None = None
) -> Inputs:
    """Finds the images that are meant, in the order of the sources.

    Args:
        sources: each an image, a folder (everything in it that looks like an image, in the order of names), a
            pattern such as `photos/**/*.jpg`, or a csv with a header.
        images: the folder that a table's file names are relative to; None takes the table's own.
        column: the table's column of file names.
        usual: that column's name where the model was trained; taken if it is there and `column` is None.

    Returns:
        The images. What is missing, or leaves its folder, is an `Input` with an error in its place.

    Raises:
        ConfigError: a table does not say which images it means.
        DataError: it is no table.
    """
    inputs = Inputs()
    for source in sources:
        try:
            _find(source, images, column, usual, inputs)
        except OSError as error:  # such as a folder that this user may not look into
            inputs.images.append(_missing(source, f"{error.strerror}."))
    return inputs


def _find(source: str, images: str | None, column: str | None, usual: str | None, inputs: Inputs) -> None:
    """Adds what one source means."""
    path = Path(source)
    if not source:
        inputs.images.append(_missing("''", "the name is empty."))
    elif path.is_dir():
        found = walk_images(path)
        inputs.images += [Input(file, file) for file in found.files]
        inputs.images += [_missing(*problem.rsplit(": ", 1)) for problem in found.problems]
        if not (found.files or found.problems):
            inputs.images.append(_missing(source, f"no image in this folder. Images end in {EXTENSIONS_TEXT}."))
        inputs.notes += skipped_notes([found], source)
    elif path.suffix.lower() == TABLE and path.exists():
        columns, rows, notes = read_table(path, column or usual)
        inputs.notes += notes
        inputs.column = column or image_column(path, columns, usual)
        if inputs.column not in columns:
            has = ", ".join(columns)
            raise ConfigError(f"{path} has no column '{column}'; its columns are {has}. Use --column NAME.")
        named = [(line, row[inputs.column]) for line, row in rows]
        inputs.images += _listed(path, Path(images) if images is not None else path.parent, named)
        if not rows:
            inputs.images.append(_missing(source, "a header and no rows."))
    elif glob.has_magic(source) and not path.exists():
        # Path.glob does not follow links to folders: they may lead in a circle.
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        files = sorted(str(file) for file in matches if not file.name.startswith(".") and not file.is_dir())
        inputs.images += [Input(file, file) for file in files]
        if not files:
            inputs.images.append(_missing(source, "no file matches this pattern."))
    else:
        inputs.images.append(Input(source, source))


def _missing(source: str, why: str) -> Input:
    return Input(source, source, DataError(f"{source}: {why}"))


def _listed(table: Path, folder: Path, named: Sequence[tuple[int, str]]) -> Iterator[Input]:
    """The images of a folder that a table names in its lines."""
    for line, file in named:
        try:
            yield Input(file, inside(folder, file, f"{table}, line {line}"))
        except DataError as error:
            yield Input(file, "", error)


def image_column(table: Path, columns: Sequence[str], usual: str | None) -> str:
    """Returns the column of file names: that of the model's own data, or the only one.

    Raises:
        ConfigError: it is not clear which.
    """
    if not columns or any(name.lower().endswith(EXTENSIONS) for name in columns):
        raise ConfigError(f"{table} has no header: expected a first line with the names of its columns.")
    if usual in columns:
        return str(usual)
    if len(columns) == 1:
        return columns[0]
    raise ConfigError(
        f"{table} has the columns {', '.join(columns)}, and it is not clear which one holds the file names. Name it by "
        f"--column NAME."
    )
