"""Data source imagefolder: one folder of images for each class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.data.dataset import LabelledImages, class_samples
from headstart.data.image_io import EXTENSIONS
from headstart.utils.errors import DataError

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LISTED_FILES = 5  # how many skipped files a note lists by name
SPLIT_NAME = re.compile(r"(train|test|val|eval|dev)(ing|id|idation|uation|elopment)?[_-]?(set|data|\d)?", re.IGNORECASE)


def imagefolder(root: str | Path, min_classes: int = 2) -> LabelledImages:
    """Return the images of folders that are named after their classes.

    Args:
        root: contains `train/CLASS/*` and optionally folders `val` (or `valid`, `validation`) and `test` with the same
            classes; or `CLASS/*` without splits. Subfolders of a class folder belong to it. Names that begin with a
            dot are skipped.
        min_classes: minimum number of classes.

    Returns:
        The splits that exist, always with "train"; classes are in alphabetical order.

    Raises:
        DataError: a folder is missing, unreadable or without images, there are too few classes, or the classes of the
            splits differ.
    """
    root = Path(root)
    folders = _split_folders(root)
    class_names = class_folders(folders["train"], min_classes)
    listings: list[FileListing] = []
    splits = {}
    for split, folder in folders.items():
        _check_classes(class_names, class_folders(folder, min_classes), split, folder)
        by_class = [image_files(folder / class_name) for class_name in class_names]
        splits[split] = class_samples([listing.files for listing in by_class], root)
        listings += by_class
    notes = skipped_notes(listings, root)
    unused = sorted({folder.name for folder in _subfolders(root)} - {folder.name for folder in folders.values()})
    if unused and folders["train"] != root:
        notes.append(f"not a split, left out: {', '.join(unused)} in {root}")
    return LabelledImages(class_names, splits, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split that exists; if there is none, the root is "train"."""
    if not os.path.isdir(root):  # noqa: PTH112 (Path.is_dir raises inside an unreadable folder)
        raise DataError(f"{root}: no such folder. Give the folder of your images as data.root=FOLDER.")
    folders: dict[str, Path] = {}
    for folder in _subfolders(root):
        for split, names in SPLIT_FOLDERS.items():
            # A data set of vehicles may have a class "train": that folder contains images rather than folders.
            if folder.name.lower() in names and _subfolders(folder):
                if split in folders:
                    both = " and ".join(sorted((folders[split].name, folder.name)))
                    raise DataError(f"{root} has more than one {split} folder, {both}: keep one.")
                folders[split] = folder
    if not folders:
        classes = [folder.name for folder in _subfolders(root)]
        if classes and all(SPLIT_NAME.fullmatch(name) for name in classes):
            raise DataError(
                f"{root} holds {', '.join(classes)}, which look like splits, without a folder for each class in them. "
                f"Expected {root / 'train' / 'CLASS'}, or a table of labels (data=csv)."
            )
        return {"train": root}
    if "train" not in folders:
        has = ", ".join(folder.name for folder in folders.values())
        raise DataError(f"{root} has a folder {has} and no folder train with a folder for each class.")
    return folders


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror}. Make it readable, or take it out of the data."
        ) from None


def class_folders(folder: Path, min_classes: int = 2) -> tuple[str, ...]:
    """Return the names of the folders in a folder, one for each class, in alphabetical order.

    Raises:
        DataError: there are fewer than `min_classes`, or none, or the folder cannot be read.
    """
    names = [entry.name for entry in _subfolders(folder)]
    if not names:
        raise DataError(f"{folder}: expected one folder for each class in it, and there is none.")
    if len(names) < min_classes:
        raise DataError(f"{folder} has a single class folder, {names[0]}: at least two classes are needed.")
    return tuple(names)


def _check_classes(expected: Sequence[str], names: Sequence[str], split: str, folder: Path) -> None:
    missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(extra)}, which train lacks"] if extra else []
        raise DataError(
            f"the classes of {split} are not those of train: {folder} {' and '.join(parts)}. "
            f"Give every split the same class folders."
        )


def image_files(folder: Path) -> FileListing:
    """Return the files below a class folder, with at least one image.

    Raises:
        DataError: there is no image, or a folder is unreadable.
    """
    listing = walk_images(folder)
    if listing.problems:
        raise DataError(f"{listing.problems[0]}. Make it readable, or take it out of the data.")
    if not listing.files:
        others = _join([*listing.others, *listing.irregular], folder) or "no other files"
        raise DataError(
            f"{folder}: no image in this class folder ({others}). Images end in "
            f"{' '.join(EXTENSIONS)}. Add some, or remove the folder."
        )
    return listing


class FileListing(NamedTuple):
    """The files below a folder.

    Attributes:
        files: paths of images, in a stable order.
        others: paths of files without an image extension.
        irregular: paths with an image extension that are not regular files: pipes, sockets, devices.
        problems: folders that could not be read, each with the reason.
    """

    files: list[str]
    others: list[str]
    irregular: list[str]
    problems: list[str]


def walk_images(folder: Path) -> FileListing:
    """List the files below a folder, recursively.

    Names that begin with a dot are skipped. Links to folders are not followed, because they may form a cycle.
    """
    files, others, irregular, problems = listing = FileListing([], [], [], [])
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: problems.append(f"{error.filename}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(parent, name)  # noqa: PTH118 (faster for a hundred thousand files)
            if not name.lower().endswith(EXTENSIONS):
                others.append(path)
            elif os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
                irregular.append(path)
            else:
                files.append(path)  # including broken links, which are reported when they are read
    return listing


def skipped_notes(listings: Sequence[FileListing], root: Path | str) -> list[str]:
    """Return notes for the user about skipped files: how many there are, and the names of the first ones."""
    others = [path for listing in listings for path in listing.others]
    irregular = [path for listing in listings for path in listing.irregular]
    kinds = ((others, "files without an image extension"), (irregular, "that are not regular files"))
    return [f"{len(paths)} {kind} were skipped in {root}: {_join(paths, root)}" for paths, kind in kinds if paths]


def _join(paths: Sequence[str], root: Path | str) -> str:
    """Join the first few paths, relative to a folder, and say how many more there are."""
    names = [os.path.relpath(path, root) for path in paths[:LISTED_FILES]]
    return ", ".join(names) + (f" and {len(paths) - LISTED_FILES} more" if len(paths) > LISTED_FILES else "")
