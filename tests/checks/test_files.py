"""Copies, damage, odd files, groups and classes, found without decoding."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.checks.facts import Facts
from headstart.checks.files import byte_groups, file_findings, group_findings
from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable, image_table
from headstart.data.build import open_images
from headstart.data.dataset import LabelledImages, Samples
from tests.helpers.checked import facts_of, of_kind, scene, scenes, table_of, train_table
from tests.helpers.runs import composed


def found(table: ImageTable, cache: Path) -> list[Finding]:
    return file_findings(table, facts_of(table, cache, decode=False))


def test_copies_by_bytes(tmp_path: Path) -> None:
    scenes(tmp_path, 3)
    shutil.copy(tmp_path / "0.jpg", tmp_path / "same label.jpg")
    shutil.copy(tmp_path / "1.jpg", tmp_path / "other label and split.jpg")
    files = [("0.jpg", 0, "train"), ("1.jpg", 0, "train"), ("2.jpg", 1, "train"), ("same label.jpg", 0, "train")]
    findings = found(table_of(tmp_path, [*files, ("other label and split.jpg", 1, "val")]), tmp_path)
    pairs = {(finding.kind, finding.image, finding.other) for finding in findings if finding.other}
    assert pairs == {
        ("copy", "same label.jpg", "0.jpg"),
        ("copy", "other label and split.jpg", "1.jpg"),
        ("leak", "other label and split.jpg", "1.jpg"),
        ("conflict", "other label and split.jpg", "1.jpg"),
    }
    assert of_kind("copy", findings)[0].detail == "identical bytes"


def test_files_that_cannot_be_read_are_no_copies(tmp_path: Path) -> None:
    scenes(tmp_path, 1)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "3.jpg").write_text("text")
    findings = found(train_table(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "gone.jpg"]), tmp_path)
    assert of_kind("copy", findings) == []
    assert {finding.image: finding.detail for finding in of_kind("unreadable", findings)} == {
        "1.jpg": "the file is empty",
        "2.jpg": "the file is empty",
        "3.jpg": "unknown format",
        "gone.jpg": "No such file or directory",
    }


def test_extensions_that_lie(tmp_path: Path) -> None:
    picture = scene(0, (40, 30))
    kinds = {
        "a.jpg": "JPEG",
        "b.jpeg": "JPEG",
        "c.JPG": "MPO",
        "d.tif": "TIFF",
        "e": "PNG",
        "f.jpg": "PNG",
        "g.png": "GIF",
    }
    for name, kind in kinds.items():
        picture.save(tmp_path / name, format=kind)
    findings = of_kind("extension", found(train_table(tmp_path, list(kinds)), tmp_path))
    assert {finding.image: finding.detail for finding in findings} == {
        "f.jpg": "PNG content in a .jpg file",
        "g.png": "GIF content in a .png file",
    }


def test_sizes_and_shapes_that_stand_out(tmp_path: Path) -> None:
    names = scenes(tmp_path, 40, (60, 44))
    scene(0, (240, 176)).save(tmp_path / "large.jpg")
    scene(0, (150, 30)).save(tmp_path / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0, (44, 60)).save(tmp_path / "turned.jpg", exif=exif)  # upright, it is like the others
    findings = found(train_table(tmp_path, [*names, "large.jpg", "wide.jpg", "turned.jpg"]), tmp_path)
    odd = [(finding.kind, finding.image) for finding in findings if finding.kind in ("size", "aspect_ratio")]
    assert odd == [("size", "large.jpg"), ("aspect_ratio", "wide.jpg")]
    assert of_kind("size", findings)[0].detail == "240 × 176 pixels: 4 times the usual side"
    assert of_kind("size", findings)[0].score == pytest.approx(4)
    assert [finding.image for finding in of_kind("orientation", findings)] == ["turned.jpg"]


def test_what_a_fifth_of_the_images_have_does_not_stand_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    names = scenes(tmp_path, 20, (30, 22))
    for name in names[:4]:
        scene(1, (300, 30)).convert("L").save(tmp_path / name, exif=exif)
    findings = found(train_table(tmp_path, names), tmp_path)
    assert [of_kind(kind, findings) for kind in ("size", "aspect_ratio", "mode")] == [[], [], []]
    turned = of_kind("orientation", findings)
    assert [finding.detail for finding in turned] == ["EXIF orientation 3; 4 of 20 images have one"]


def test_sizes_that_vary_have_fewer_that_stand_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(60)]
    for name, size in zip(names, np.exp(rng.normal(4, 0.6, (60, 2))).astype(int).tolist(), strict=True):
        Image.new("RGB", tuple(size)).save(tmp_path / name)
    findings = found(train_table(tmp_path, names), tmp_path)
    assert of_kind("size", findings) == []
    assert of_kind("aspect_ratio", findings) == []


def test_a_mode_that_stands_out(tmp_path: Path) -> None:
    names = scenes(tmp_path, 20, (30, 22))
    scene(0, (30, 22)).convert("L").save(tmp_path / names[7])
    modes = of_kind("mode", found(train_table(tmp_path, names), tmp_path))
    assert [(finding.image, finding.detail) for finding in modes] == [("7.jpg", "mode L, usually RGB")]


def test_groups_that_splits_divide(tmp_path: Path) -> None:
    files = [
        (f"patient{patient:02}_{view}.png", patient % 2, "val" if view == 3 and patient < 5 else "train")
        for patient in range(12)
        for view in range(4)
    ]
    for index, (name, _, _) in enumerate(files):
        Image.new("RGB", (index + 1, 8)).save(tmp_path / name)
    (group,) = group_findings(table_of(tmp_path, files))
    assert group.score == 5
    assert "data.group_pattern=(patient\\d+)_ keeps them together" in group.detail
    assert {group.image[:9], group.other[:9]} == {"patient00"}


def test_classes_of_very_different_sizes_and_classes_too_small(tmp_path: Path) -> None:
    sizes = {"train": (66, 6, 2), "val": (7, 0, 1)}
    labels = {split: np.repeat([0, 1, 2], counts) for split, counts in sizes.items()}
    pixels = np.zeros((82, 4, 4, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(82)
    names = [str(index) for index in range(82)]
    splits = {
        "train": Samples(pixels[:74], labels["train"], names[:74]),
        "val": Samples(pixels[74:], labels["val"], names[74:]),
    }
    findings = found(image_table(LabelledImages(("cat", "dog", "elk"), splits)), tmp_path)
    assert {finding.image: finding.detail for finding in of_kind("small_class", findings)} == {
        "dog": "images: train 6, val 0",
        "elk": "images: train 2, val 1",
    }
    (imbalance,) = of_kind("imbalance", findings)
    assert (imbalance.image, imbalance.detail) == ("elk", "3 images, and cat has 73")
    assert imbalance.score == pytest.approx(73 / 3)


def test_arrays_have_copies_but_no_files(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(scene(seed, (20, 20))) for seed in (0, 1, 0)])
    samples = Samples(pixels, np.array([0, 1, 0]), ["0", "1", "2"])
    findings = found(image_table(LabelledImages(("cat", "dog"), {"train": samples})), tmp_path)
    copies = [finding for finding in findings if finding.other]
    assert [(copy.kind, copy.image, copy.other, copy.detail) for copy in copies] == [
        ("copy", "2", "0", "identical pixels")
    ]


def test_ordinary_images_have_no_findings(tmp_path: Path) -> None:
    assert found(train_table(tmp_path, scenes(tmp_path, 30, (60, 44))), tmp_path) == []


@pytest.mark.usefixtures("shared")
def test_the_vehicles_have_copies_conflicts_and_leaks(shared: Path, tmp_path: Path) -> None:
    table = image_table(open_images(composed("data=emergency", f"data.root={shared}/data/emergency-vehicles").data))
    facts: Facts = facts_of(table, tmp_path, decode=False)
    pairs = [pair for group in byte_groups(facts) for pair in combinations(group, 2)]
    labels = table.samples.labels
    assert len(pairs) == 99
    assert sum(labels[left] != labels[right] for left, right in pairs) == 10
    findings = file_findings(table, facts)
    assert len({finding.image for finding in of_kind("leak", findings)}) == 16
    assert len(of_kind("conflict", findings)) == 10
    assert {finding.kind for finding in findings} == {"copy", "leak", "conflict"}
