"""Images named on a command line by files, folders, glob patterns and CSV tables."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from headstart.data.csv_table import path_inside, read_table
from headstart.data.image_folder import skipped_notes, walk_images
from headstart.data.image_io import EXTENSIONS
from headstart.utils.errors import ConfigError, DataError


class Input(NamedTuple):
    """An image that was named on the command line.

    Attributes:
        name: the name as given.
        path: the path of the file; empty if the name is not valid.
        error: why there is no image, if that is known before the file is read.
    """

    name: str
    path: str
    error: DataError | None = None


@dataclass
class Inputs:
    """The images that were named on the command line.

    Attributes:
        images: the images, in order.
        notes: messages for the user, such as skipped files.
        column: the column of file names, if images come from a table.
    """

    images: list[Input] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    column: str | None = None


def find_images(
    sources: Sequence[str], *, images: str | None = None, column: str | None = None, usual: str | None = None
) -> Inputs:
    """Find the images that the sources name, in the order of the sources.

    Args:
        sources: each an image, a folder, a glob pattern such as `photos/**/*.jpg`, or a CSV file with a header. A
            folder stands for all files below it that look like images, sorted by name.
        images: the folder that file names in a table are relative to; None takes the table's own folder.
        column: the table's column of file names.
        usual: the name of that column in the model's training data, used if it exists and `column` is None.

    Returns:
        The images. A file that is missing or lies outside its folder is an `Input` with an error.

    Raises:
        ConfigError: a table has no such column, or it is not clear which column holds the file names.
        DataError: a table cannot be read.
    """
    inputs = Inputs()
    for source in sources:
        try:
            _find(source, images, column, usual, inputs)
        except OSError as error:  # such as a folder without read permission
            inputs.images.append(_missing(source, f"{error.strerror}."))
    return inputs


def _find(source: str, images: str | None, column: str | None, usual: str | None, inputs: Inputs) -> None:
    """Add the images of one source to `inputs`."""
    path = Path(source)
    if not source:
        inputs.images.append(_missing("''", "the name is empty."))
    elif path.is_dir():
        walk = walk_images(path)
        inputs.images += [Input(file, file) for file in walk.files]
        inputs.images += [_missing(*problem.rsplit(": ", 1)) for problem in walk.problems]
        if not (walk.files or walk.problems):
            inputs.images.append(_missing(source, f"no image in this folder. Images end in {' '.join(EXTENSIONS)}."))
        inputs.notes += skipped_notes([walk], source)
    elif path.suffix.lower() == ".csv" and path.exists():
        columns, rows, notes, _ = read_table(path, column or usual)
        inputs.notes += notes
        inputs.column = column or image_column(path, columns, usual)
        if inputs.column not in columns:
            has = ", ".join(columns)
            raise ConfigError(f"{path} has no column '{column}'; its columns are {has}. Use --column NAME.")
        folder = Path(images) if images is not None else path.parent
        inputs.images += [_listed(path, line, folder, row[inputs.column]) for line, row in rows]
        if not rows:
            inputs.images.append(_missing(source, "a header and no rows."))
    elif glob.has_magic(source) and not path.exists():
        # Path.glob does not follow symbolic links to folders, which may form a cycle.
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        files = sorted(str(file) for file in matches if not file.name.startswith(".") and not file.is_dir())
        inputs.images += [Input(file, file) for file in files]
        if not files:
            inputs.images.append(_missing(source, "no file matches this pattern."))
    else:
        inputs.images.append(Input(source, source))


def _missing(source: str, why: str) -> Input:
    return Input(source, source, DataError(f"{source}: {why}"))


def _listed(table: Path, line: int, folder: Path, file: str) -> Input:
    """Return the image of a folder that a line of a table names."""
    try:
        return Input(file, path_inside(folder, file, f"{table}, line {line}"))
    except DataError as error:
        return Input(file, "", error)


def image_column(table: Path, columns: Sequence[str], usual: str | None) -> str:
    """Return the column of file names: that of the model's training data, or the only one.

    Raises:
        ConfigError: the table has no header, or it is not clear which column holds the file names.
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
