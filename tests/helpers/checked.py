"""Images for a check: a table of files, and pictures that look like photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.checks.facts import Facts, read_facts
from headstart.checks.findings import Finding
from headstart.checks.table import SPLITS, ImageTable, image_table
from headstart.data.dataset import LabelledImages, Samples

File = tuple[str, int, str]  # name below the root, label and split


def table_of(root: Path, files: Sequence[File], class_names: tuple[str, ...] = ("cat", "dog")) -> ImageTable:
    splits = {}
    for split in SPLITS:
        chosen = [(name, label) for name, label, where in files if where == split]
        if chosen:
            labels = np.array([label for _, label in chosen], dtype=np.int64)
            splits[split] = Samples([str(root / name) for name, _ in chosen], labels, [name for name, _ in chosen])
    return image_table(LabelledImages(class_names, splits))


def train_table(root: Path, names: Sequence[str]) -> ImageTable:
    """The table of files that are all of one class, in train."""
    return table_of(root, [(name, 0, "train") for name in names], ("cat",))


def facts_of(table: ImageTable, cache: Path, *, decode: bool = True) -> Facts:
    return read_facts(table, decode=decode, folder=cache, advance=lambda _: None)


def of_kind(kind: str, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def scene(seed: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    """A picture with detail at all scales, as photographs have."""
    rng, width, height = np.random.default_rng(seed), *size
    pixels = np.full((height, width, 3), 128.0)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = rng.normal(0, 30, (cells, cells, 3)).clip(-128, 127) + 128
        layer = Image.fromarray(noise.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pixels += np.asarray(layer) - 128.0
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scenes(root: Path, count: int, size: tuple[int, int] = (224, 224)) -> list[str]:
    """Writes images and returns their names."""
    names = [f"{index}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        scene(index, size).save(root / name)
    return names
