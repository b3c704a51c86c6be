"""Data sources stl10, pets, caltech101, digits and glyphs: public data sets, and small ones without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import LabelledImages, Samples, class_samples
from headstart.data.image_folder import class_folders, image_files
from headstart.utils.errors import DataError

STL10_SHAPE = (3, 96, 96)  # channel, column, row: the binary files are in column-major order


def stl10(root: str | Path, *, download: bool = False) -> LabelledImages:
    """Return STL-10: 96 × 96 images of 10 classes in the splits "train" (5000) and "test" (8000).

    Args:
        root: contains `stl10_binary/`, in torchvision's layout.
        download: let torchvision download the data set if it is missing.

    Raises:
        DataError: files are missing or truncated, or the download failed. The message says what to do.
    """
    folder = Path(root) / "stl10_binary"
    _ensure(
        folder / "train_X.bin",
        "STL-10",
        "stl10_binary.tar.gz (2.6 GB) from https://cs.stanford.edu/~acoates/stl10",
        Path(root),
        download,
        lambda datasets: datasets.STL10(str(root), download=True),
    )
    for name in ("class_names.txt", "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing. Unpack stl10_binary.tar.gz again.")
    class_names = tuple((folder / "class_names.txt").read_text().split())
    return LabelledImages(class_names, {split: _stl10_split(folder, split) for split in ("train", "test")})


def _stl10_split(folder: Path, split: str) -> Samples:
    images_file, labels_file = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    labels = np.fromfile(labels_file, dtype=np.uint8).astype(np.int64) - 1
    if images_file.stat().st_size != len(labels) * int(np.prod(STL10_SHAPE)):
        raise DataError(
            f"{images_file} does not hold the {len(labels)} images that {labels_file.name} has labels for: "
            f"one of them is cut off. Unpack stl10_binary.tar.gz again."
        )
    # Memory-mapped, so that images outside the chosen splits are never read.
    images = np.memmap(images_file, dtype=np.uint8, mode="r").reshape(-1, *STL10_SHAPE)
    return Samples(images.transpose(0, 3, 2, 1), labels, _numbered(split, len(labels)))


def pets(root: str | Path, *, download: bool = False) -> LabelledImages:
    """Return Oxford-IIIT Pet by breed, in the splits "train" (the official trainval) and "test".

    Args:
        root: contains `oxford-iiit-pet/{images,annotations}`, in torchvision's layout.
        download: let torchvision download the data set if it is missing.

    Raises:
        DataError: files are missing, the download failed, or the two splits have different breeds.
    """
    folder = Path(root) / "oxford-iiit-pet"
    _ensure(
        folder / "annotations" / "trainval.txt",
        "Oxford-IIIT Pet",
        "images.tar.gz and annotations.tar.gz (0.8 GB) from https://www.robots.ox.ac.uk/~vgg/data/pets",
        folder,
        download,
        lambda datasets: datasets.OxfordIIITPet(str(root), download=True),
    )
    trainval = _pets_split(folder, "trainval")
    class_names = tuple(trainval)  # in the order of the official class numbers
    splits = {}
    for split, by_class in (("train", trainval), ("test", _pets_split(folder, "test"))):
        if tuple(by_class) != class_names:
            raise DataError(f"{folder}/annotations: trainval.txt and test.txt have different breeds.")
        splits[split] = class_samples(list(by_class.values()), folder)
    return LabelledImages(class_names, splits)


def _pets_split(folder: Path, split: str) -> dict[str, list[str]]:
    """Return the image paths of each breed, in the order of the official class numbers."""
    table = folder / "annotations" / f"{split}.txt"
    if not table.is_file():
        raise DataError(f"{table}: missing. Unpack annotations.tar.gz again.")
    by_class: dict[tuple[int, str], list[str]] = {}
    for line in table.read_text().splitlines():
        image_id, number = line.split()[:2]
        breed = image_id.rpartition("_")[0].replace("_", " ").title()
        by_class.setdefault((int(number), breed), []).append(str(folder / "images" / f"{image_id}.jpg"))
    missing = [file for files in by_class.values() for file in files if not Path(file).is_file()]
    if missing:
        raise DataError(f"{table} names {missing[0]}, which does not exist ({len(missing)} missing in all).")
    return {breed: files for (_, breed), files in sorted(by_class.items())}


def caltech101(root: str | Path, *, download: bool = False) -> LabelledImages:
    """Return Caltech-101 without its background class; it has no official splits, so that all images are "train".

    Args:
        root: contains `caltech101/101_ObjectCategories/CLASS/*`, in torchvision's layout.
        download: let torchvision download the data set if it is missing.

    Raises:
        DataError: the folder is missing, the download failed, or a class folder is empty. The message says what to do.
    """
    base = Path(root) / "caltech101"
    folder = base / "101_ObjectCategories"
    _ensure(
        folder,
        "Caltech-101",
        "101_ObjectCategories.tar.gz (from https://data.caltech.edu/records/mzrjq-6wc02)",
        base,
        download,
        lambda datasets: datasets.Caltech101(str(root), download=True),
    )
    class_names = tuple(name for name in class_folders(folder) if name != "BACKGROUND_Google")
    files = [image_files(folder / class_name).files for class_name in class_names]
    return LabelledImages(class_names, {"train": class_samples(files, folder)})


def _ensure(
    expected: Path, title: str, archive: str, folder: Path, download: bool, fetch: Callable[[Any], object]
) -> None:
    """Let `fetch` download a data set, given the module `torchvision.datasets`, if the expected path is missing."""
    if expected.exists():
        return
    by_hand = f"put {archive} into {folder} and unpack it there"
    if not download:
        raise DataError(
            f"{title} is not in {folder}: {expected} is missing. Add data.download=true to fetch it, or {by_hand}; "
            f"data.root=FOLDER looks elsewhere."
        )
    from torchvision import datasets

    try:
        fetch(datasets)
    except (OSError, RuntimeError, ImportError) as error:  # no network, a bad archive, no gdown
        raise DataError(f"{title} could not be downloaded ({error}). Without a network, {by_hand}.") from error


def digits() -> LabelledImages:
    """Return scikit-learn's handwritten digits: 1797 images of 8 × 8 pixels, without official splits.

    Pixel values from 0 to 16 are scaled to 0 to 255.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = data.target.astype(np.int64)
    class_names = tuple(str(name) for name in data.target_names)
    return LabelledImages(class_names, {"train": Samples(images, labels, _numbered("digits", len(labels)))})


def glyphs(per_class: int, size: int, seed: int) -> LabelledImages:
    """Return letters and digits rendered from matplotlib's fonts, all in the split "train".

    Args:
        per_class: number of images of each class.
        size: height and width of the images, in pixels.
        seed: seed of the rendering; see `headstart.data.glyphs.render_glyphs`.
    """
    from headstart.data.glyphs import GLYPHS, render_glyphs

    images, labels = render_glyphs(per_class, size, seed)
    return LabelledImages(GLYPHS, {"train": Samples(images, labels, _numbered("glyphs", len(labels)))})


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}/{index}" for index in range(count)]
