"""Small generated data in the real file formats of each source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .conftest import class_folders, photo, write_csv


def make_stl10(root: Path, *, train: int = 200, test: int = 20) -> Path:
    """STL-10's binaries: channel, column, row; labels from 1; class k is bright in column k."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    for split, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)
        images = np.random.default_rng(0).integers(0, 60, (count, 3, 96, 96), dtype=np.uint8)
        images[np.arange(count), :, labels - 1, :] = 255
        images.tofile(folder / f"{split}_X.bin")
        labels.tofile(folder / f"{split}_y.bin")
    return root


def make_pets(root: Path, *, breeds: Sequence[str] = ("Abyssinian", "great_pyrenees"), images: int = 10) -> Path:
    folder = root / "oxford-iiit-pet"
    for split, first in (("trainval", 1), ("test", 101)):
        lines = []
        for label, breed in enumerate(breeds):
            for index in range(first, first + images):
                photo(folder / "images" / f"{breed}_{index}.jpg", label, seed=index)
                lines.append(f"{breed}_{index} {label + 1} 1 1")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_caltech101(root: Path, *, images: int = 12) -> Path:
    class_folders(root / "caltech101" / "101_ObjectCategories", ("BACKGROUND_Google", "ant", "yin_yang"), images)
    return root


def make_emergency(root: Path, *, images: int = 40) -> Path:
    rows: list[tuple[object, object]] = [("image_names", "emergency_or_not")]
    for index in range(images):
        photo(root / "images" / f"{index}.jpg", index % 2, seed=index)
        rows.append((f"{index}.jpg", index % 2))
    write_csv(root / "train.csv", rows)
    write_csv(root / "test.csv", [("image_names",), ("0.jpg",)])
    return root


def make_split_folders(root: Path, *, splits: Sequence[str] = ("train", "valid", "test")) -> Path:
    for split in splits:
        class_folders(root / split, ("cats", "dogs"), 10)
    return root


MAKERS = {
    "stl10": make_stl10,
    "pets": make_pets,
    "caltech101": make_caltech101,
    "emergency": make_emergency,
    "imagefolder": make_split_folders,
    "cats_dogs": make_split_folders,
    "csv": make_emergency,
}
