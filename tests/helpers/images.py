"""Small generated images, in the real file formats of each source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200))
# Of the digits that `hard` shows under noise; pages, charts and tables have to cope with them.
CLASSES = ("ant", "a <b>very long $name$ of a class, indeed", "zebra")


def photo(path: Path, label: int, *, size: tuple[int, int] = (40, 36), seed: int = 0) -> None:
    """Writes a noisy image whose colour tells its class."""
    rng = np.random.default_rng((label, seed))
    pixels = np.array(COLOURS[label % len(COLOURS)]) + rng.normal(0, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def class_folders(root: Path, classes: Sequence[str] = ("cat", "dog"), images: int = 10) -> Path:
    """Writes root/CLASS/N.jpg."""
    for label, name in enumerate(classes):
        for index in range(images):
            photo(root / name / f"{index}.jpg", label, seed=index)
    return root


def planted_groups(root: Path, groups: int = 40, images: int = 8) -> Path:
    """Writes root/CLASS/sceneG_I.png: the background tells the scene, and the class is that of the scene, at random.

    Nothing else tells the class, so that whoever has not seen a scene can only guess.
    """
    rng = np.random.default_rng(0)
    for scene, label in enumerate(rng.permutation(np.arange(groups) % 2).tolist()):
        background = np.kron(rng.integers(40, 215, (4, 4, 3)), np.ones((8, 8, 1)))
        folder = root / ("cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(images):
            pixels = background + rng.normal(0, 12, background.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"scene{scene}_{index}.png")
    return root


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


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


def make_odd_images(folder: Path) -> dict[str, Path]:
    """One file of every kind that people have and that can be decoded, all of the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    photo(folder / "plain.png", 1, size=(60, 44))
    picture = Image.open(folder / "plain.png")
    grey = np.asarray(picture.convert("L"))
    turned = Image.Exif()
    turned[0x0112] = 6  # turn a quarter clockwise to see it upright
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "grey.png": (picture.convert("L"), {}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "palette.png": (picture.convert("P"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "transparent.png": (picture.convert("RGBA"), {}),
        "turned.jpg": (picture, {"exif": turned}),
        "animated.gif": (picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
        "called a photo.jpg": (picture, {"format": "GIF"}),
        "modern.webp": (picture, {}),
        "größe 図.jpg": (picture, {}),
        "dot.png": (picture.resize((1, 1)), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in kinds}


def make_bad_files(folder: Path) -> dict[str, str]:
    """One file of every kind that cannot be answered, and what is said of it."""
    folder.mkdir(parents=True, exist_ok=True)
    photo(folder / "whole.jpg", 0, size=(200, 200))
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-900])
    (folder / "whole.jpg").unlink()
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("L", (60_000, 1)).save(folder / "line.png")
    return {
        "truncated.jpg": "not an image that can be read (image file is truncated",
        "empty.jpg": "not an image that can be read (unknown format)",
        "text.jpg": "not an image that can be read (unknown format)",
        "loop.jpg": "not an image that can be read (Too many levels of symbolic links",
        "bomb.png": "not an image that can be read (Image size (400000000 pixels) exceeds limit",
        "line.png": "not an image that can be read (60000 × 1 pixels: one side is more than 500 times the other)",
        "gone.jpg": "no such file.",
    }
