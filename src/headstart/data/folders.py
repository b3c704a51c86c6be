"""Where are the images? In folders, one a class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from headstart.data.images import EXTENSIONS
from headstart.data.sources import Source, file_samples
from headstart.errors import DataError

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LIKE_A_SPLIT = re.compile(
    r"(train|test|val|eval|dev)(ing|id|idation|uation|elopment)?[_-]?(set|data|\d)?", re.IGNORECASE
)


def imagefolder(root: str | Path, least: int = 2) -> Source:
    """Folders of images, one a class.

    Args:
        root: holds `train/CLASS/*` and possibly `val` (or `valid`, `validation`) and `test` likewise; or
            `CLASS/*` without splits. Folders within a class folder belong to it; names that begin with a dot
            are left out.
        least: how many classes there have to be.

    Returns:
        The splits that exist, with "train" among them; classes in alphabetical order.

    Raises:
        DataError: a folder is missing or holds no image, or the classes of the splits differ.
    """
    root = Path(root)
    folders = _split_folders(root)
    class_names = class_folders(folders["train"], least)
    skipped = 0
    splits = {}
    for split, folder in folders.items():
        _check_classes(class_names, class_folders(folder, least), split, folder)
        files, labels = [], []
        for index, class_name in enumerate(class_names):
            found, others = image_files(folder / class_name)
            files += found
            labels += [index] * len(found)
            skipped += others
        splits[split] = file_samples(files, labels, root)
    notes = [f"{skipped} files without an image extension were skipped in {root}"] if skipped else []
    unused = sorted({folder.name for folder in _subfolders(root)} - {folder.name for folder in folders.values()})
    if unused and folders["train"] != root:
        notes.append(f"not a split, left out: {', '.join(unused)} in {root}")
    return Source(class_names, splits, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that exists; without any, the root is "train"."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder of your images as data.root=FOLDER.")
    folders: dict[str, Path] = {}
    for folder in _subfolders(root):
        for split, names in SPLIT_FOLDERS.items():
            # A data set of vehicles may have a class "train": then that folder holds images and no folders.
            if folder.name.lower() in names and _subfolders(folder):
                if split in folders:
                    both = " and ".join(sorted((folders[split].name, folder.name)))
                    raise DataError(f"{root} has more than one {split} folder, {both}: keep one.")
                folders[split] = folder
    if not folders:
        classes = [folder.name for folder in _subfolders(root)]
        if classes and all(LIKE_A_SPLIT.fullmatch(name) for name in classes):
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
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def class_folders(folder: Path, least: int = 2) -> tuple[str, ...]:
    """Names of the class folders in alphabetical order.

    Raises:
        DataError: there are fewer than `least`.
    """
    names = [entry.name for entry in _subfolders(folder)]
    if not names:
        raise DataError(f"{folder}: expected one folder for each class in it, and there is none.")
    if len(names) < least:
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
    """Image files below a class folder in a stable order, and how many other files there are.

    Raises:
        DataError: there is no image.
    """
    files, others, problems = walk_images(folder)
    if problems:
        raise DataError(f"{problems[0]}. Make it readable, or take it out of the data.")
    if not files:
        raise DataError(
            f"{folder}: no image in this class folder ({others} other files). Images end in "
            f"{' '.join(EXTENSIONS)}. Add some, or remove the folder."
        )
    return files, others


def walk_images(folder: Path) -> tuple[list[str], int, list[str]]:
    """Image files below a folder in a stable order, how many other files there are, and what could not be looked into.

    Names that begin with a dot are left out, and links to folders are not followed: they may lead in a circle.
    """
    files, others = [], 0
    problems: list[str] = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: problems.append(f"{error.filename}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                files.append(str(Path(place, name)))
            else:
                others += 1
    return files, others, problems
