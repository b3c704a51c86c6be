"""Where are the images, what are the classes, which splits exist? Folders and tables; see also `public.py`."""

from __future__ import annotations

import csv as csv_format
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.images import EXTENSIONS
from headstart.errors import DataError

VALIDATION_FOLDERS = ("val", "valid", "validation")


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Attributes:
        images: paths, or a uint8 array of shape (N, height, width, 3).
        labels: class indices, int64, shape (N,).
        names: what each image is called in the record of the split; unique within a source.
    """

    images: Sequence[str] | NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """The samples at these positions, in this order."""
        if isinstance(self.images, np.ndarray):
            images: Sequence[str] | NDArray[np.uint8] = self.images[indices]
        else:
            images = [self.images[i] for i in indices]
        return Samples(images, self.labels[indices], [self.names[i] for i in indices])


@dataclass(frozen=True)
class Source:
    """What a data set has: its class names in order, and the splits that exist as "train", "val" or "test"."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    notes: Sequence[str] = field(default_factory=list)  # what a user should know, such as what was skipped


def imagefolder(root: str | Path) -> Source:
    """Folders of images, one a class.

    Args:
        root: holds `train/CLASS/*` and possibly `val` (or `valid`, `validation`) and `test` likewise; or
            `CLASS/*` without splits. Folders within a class folder belong to it; names that begin with a dot
            are left out.

    Returns:
        The splits that exist, with "train" among them; classes in alphabetical order.

    Raises:
        DataError: a folder is missing or holds no image, or the classes of the splits differ.
    """
    root = Path(root)
    folders = _split_folders(root)
    class_names = class_folders(folders["train"])
    skipped = 0
    splits = {}
    for split, folder in folders.items():
        _check_classes(class_names, class_folders(folder), split, folder)
        files, labels = [], []
        for index, class_name in enumerate(class_names):
            found, others = image_files(folder / class_name)
            files += found
            labels += [index] * len(found)
            skipped += others
        splits[split] = file_samples(files, labels, root)
    notes = [f"{skipped} files without an image extension were skipped in {root}"] if skipped else []
    return Source(class_names, splits, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder of your images as data.root=FOLDER.")
    train = root / "train"
    # A data set of vehicles may have a class "train": then that folder holds images and no folders.
    if not train.is_dir() or not any(entry.is_dir() for entry in train.iterdir()):
        for name in (*VALIDATION_FOLDERS, "test"):
            if (root / name).is_dir() and any(entry.is_dir() for entry in (root / name).iterdir()):
                raise DataError(f"{root} has a folder {name} and no folder train with a folder for each class.")
        return {"train": root}
    folders = {"train": train}
    validation = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(validation) > 1:
        names = " and ".join(folder.name for folder in validation)
        raise DataError(f"{root} has more than one validation folder, {names}: keep one.")
    if validation:
        folders["val"] = validation[0]
    if (root / "test").is_dir():
        folders["test"] = root / "test"
    return folders


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in alphabetical order.

    Raises:
        DataError: there are fewer than two.
    """
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: expected one folder for each class in it, and there is none.")
    if len(names) == 1:
        raise DataError(f"{folder} has a single class folder, {names[0]}: at least two classes are needed.")
    return tuple(names)


def _check_classes(expected: Sequence[str], found: Sequence[str], split: str, folder: Path) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(extra)}, which train lacks"] if extra else []
        raise DataError(
            f"the classes of {split} are not those of train: {folder} {' and '.join(parts)}. "
            f"Give every split the same class folders."
        )


def image_files(folder: Path) -> tuple[list[str], int]:
    """Image files below a folder in a stable order, and how many other files there are."""
    files, others = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                files.append(str(Path(place, name)))
            else:
                others += 1
    if not files:
        raise DataError(
            f"{folder}: no image in this class folder ({others} other files). Images end in "
            f"{' '.join(EXTENSIONS)}. Add some, or remove the folder."
        )
    return files, others


def file_samples(files: Sequence[str], labels: Sequence[int], root: Path) -> Samples:
    """Samples of files that are called by their path below a folder."""
    names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return Samples(list(files), np.asarray(labels, dtype=np.int64), names)


def csv(
    root: str | Path,
    *,
    images: str = "images",
    train_csv: str = "train.csv",
    test_csv: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    classes: Mapping[str, str] | None = None,
) -> Source:
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
    splits, notes = {"train": train.samples(folder, names)}, []
    if test_csv is not None:
        test = _Table.read(Path(root, test_csv), image_column, label_column)
        if test.labels is None:
            notes.append(f"{test.path} has no labels: {len(test.files)} images to predict, no test split")
        else:
            splits["test"] = test.samples(folder, names)
    return Source(tuple(names.values()), splits, notes)


def _sorted(labels: set[str]) -> list[str]:
    """Sorted as numbers if all are whole numbers, so that 10 comes after 9."""
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


@dataclass(frozen=True)
class _Table:
    """A table of file names and, possibly, labels."""

    path: Path
    columns: list[str]
    files: list[str]
    labels: list[str] | None

    @classmethod
    def read(cls, pattern: Path, image_column: str, label_column: str) -> _Table:
        path = _one_file(pattern)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv_format.DictReader(file)
            columns = list(reader.fieldnames or [])
            if image_column not in columns:
                raise DataError(
                    f"{path} has no column '{image_column}'; its columns are {', '.join(columns) or 'none'}. "
                    f"Name the column of file names by data.image_column=NAME."
                )
            rows = list(reader)
        if not rows:
            raise DataError(f"{path} has a header and no rows.")
        files = [(row[image_column] or "").strip() for row in rows]
        labels = [(row[label_column] or "").strip() for row in rows] if label_column in columns else None
        return cls(path, columns, files, labels)

    def samples(self, folder: Path, names: Mapping[str, str]) -> Samples:
        """The labelled images of this table.

        Args:
            folder: of the images.
            names: label -> class name, in class order.
        """
        indices = {label: index for index, label in enumerate(names)}
        paths, labels = [], []
        for row, (file, label) in enumerate(zip(self.files, self.labels or [], strict=True), start=2):
            where = f"{self.path}, line {row}"
            paths.append(_inside(folder, file, where))
            if not label:
                raise DataError(f"{where}: the label of {file} is empty. Fill it in or remove the row.")
            if label not in indices:
                raise DataError(
                    f"{where}: the label of {file} is {label}, which is none of the classes {', '.join(names)}."
                )
            labels.append(indices[label])
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{self.path} names {missing[0]}, which is not there{others}.")
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


def _inside(folder: Path, file: str, where: str) -> str:
    """The path of a file that a table names, which may not lead out of the folder of images."""
    inner = os.path.normpath(file)
    if not file or inner == "." or inner.startswith("..") or Path(inner).is_absolute():
        raise DataError(
            f"{where}: the file name '{file}' does not stay inside {folder}. Names are relative to that folder."
        )
    return str(folder / inner)
