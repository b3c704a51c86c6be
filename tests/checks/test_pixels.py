"""Equal pixels in different files, and images in which there is little to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from headstart.checks.findings import Finding
from headstart.checks.pixels import pixel_findings
from headstart.checks.table import ImageTable
from tests.helpers.checked import facts_of, of_kind, scene, scenes, table_of, train_table


def found(table: ImageTable, cache: Path) -> list[Finding]:
    return pixel_findings(table, facts_of(table, cache))


def test_equal_pixels_in_different_files(tmp_path: Path) -> None:
    picture = scene(0)
    for name in ("a.png", "b.bmp", "c.tif", "d.webp"):
        picture.save(tmp_path / name, **({"lossless": True} if name == "d.webp" else {}))
    picture.save(tmp_path / "e.jpg")
    picture.save(tmp_path / "f.jpg", comment="the same tables and pixels, but other bytes")
    picture.save(tmp_path / "g.jpg", progressive=True)
    scene(1).save(tmp_path / "h.png")
    train = [(name, 0, "train") for name in ("a.png", "b.bmp", "c.tif", "e.jpg", "f.jpg", "h.png")]
    findings = found(table_of(tmp_path, [*train, ("d.webp", 1, "test"), ("g.jpg", 0, "val")]), tmp_path)
    assert {(finding.kind, finding.image, finding.other) for finding in findings if finding.other} == {
        ("copy", "b.bmp", "a.png"),
        ("copy", "c.tif", "a.png"),
        ("copy", "d.webp", "a.png"),
        ("leak", "d.webp", "a.png"),
        ("conflict", "d.webp", "a.png"),
        ("conflict", "d.webp", "b.bmp"),
        ("conflict", "d.webp", "c.tif"),
        ("copy", "f.jpg", "e.jpg"),
        ("copy", "g.jpg", "e.jpg"),
        ("leak", "g.jpg", "e.jpg"),
    }


def test_copies_by_bytes_are_not_said_twice(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.bmp"):
        scene(0).save(tmp_path / name)
    findings = found(train_table(tmp_path, ["a.png", "b.png", "c.bmp"]), tmp_path)
    assert [(finding.image, finding.other) for finding in findings] == [("c.bmp", "a.png")]


def test_pixels_that_differ_in_one_value_are_not_equal(tmp_path: Path) -> None:
    pixels = np.array(scene(0, (560, 560)))  # a hundred of its pixels are one of the small copy
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[300, 300, 1] ^= 1
    Image.fromarray(pixels).save(tmp_path / "b.png")
    facts = facts_of(train_table(tmp_path, ["a.png", "b.png"]), tmp_path)
    assert facts.pixels is not None
    assert facts.pixels["key"][0] == facts.pixels["key"][1]  # otherwise this test would show nothing
    assert found(train_table(tmp_path, ["a.png", "b.png"]), tmp_path) == []


def letterboxed(sides: bool) -> Image.Image:
    framed = Image.new("RGB", (224, 224), (3, 0, 2))
    framed.paste(scene(0, (150, 224) if sides else (224, 150)), (37, 0) if sides else (0, 37))
    return framed


def product() -> Image.Image:
    """A thing in front of a white wall."""
    pixels = np.array(scene(0))
    rows, columns = np.mgrid[:224, :224] - 111.5
    pixels[(rows / 40) ** 2 + (columns / 90) ** 2 > 1] = 255
    return Image.fromarray(pixels)


def scaled(low: float, high: float) -> Image.Image:
    return scene(0).point([round(low + (high - low) * value / 255) for value in range(256)] * 3)


ODD = {
    "blank": Image.new("RGB", (224, 224), (90, 120, 200)),
    "dark": scaled(0, 50),
    "bright": scaled(235, 255),
    "blurred": scene(0).filter(ImageFilter.GaussianBlur(8)),
    "low_information": Image.fromarray(np.pad(np.array(scene(0, (40, 40))), ((92, 92), (92, 92), (0, 0)))),
    "letterboxed": letterboxed(sides=False),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_odd_pixels(kind: str, suffix: str, tmp_path: Path) -> None:
    names = scenes(tmp_path, 4)
    ODD[kind].save(tmp_path / f"odd.{suffix}")
    (finding,) = found(train_table(tmp_path, [*names, f"odd.{suffix}"]), tmp_path)
    assert (finding.kind, finding.image) == (kind, f"odd.{suffix}")
    assert 0 < finding.score <= 1
    assert any(character.isdigit() for character in finding.detail)


def test_borders_are_at_both_sides_and_straight(tmp_path: Path) -> None:
    names = scenes(tmp_path, 4)
    letterboxed(sides=True).save(tmp_path / "sides.jpg")
    product().save(tmp_path / "product.jpg")
    sky = np.array(scene(0))
    sky[:80] = 200
    Image.fromarray(sky).save(tmp_path / "sky.jpg")
    findings = found(train_table(tmp_path, [*names, "sides.jpg", "product.jpg", "sky.jpg"]), tmp_path)
    assert [(finding.image, finding.detail) for finding in of_kind("letterboxed", findings)] == [
        ("sides.jpg", "uniform borders take 32% of the side")
    ]


def test_ordinary_images_have_no_findings(tmp_path: Path) -> None:
    assert found(train_table(tmp_path, scenes(tmp_path, 20)), tmp_path) == []


def test_dark_images_do_not_stand_out_where_many_are_but_blank_ones_do(tmp_path: Path) -> None:
    names = scenes(tmp_path, 20, (64, 64))
    for index, name in enumerate(names[:5]):
        scene(index, (64, 64)).point([value // 6 for value in range(256)] * 3).save(tmp_path / name)
    for index, name in enumerate(names[5:10]):
        Image.new("RGB", (64, 64), (20 * index, 150, 90)).save(tmp_path / name)
    findings = found(train_table(tmp_path, names), tmp_path)
    assert [finding.image for finding in findings if finding.kind == "blank"] == names[5:10]
    assert {finding.kind for finding in findings} == {"blank"}


def test_images_that_cannot_be_read_have_no_pixels_to_compare(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text(f"not an image, {name}")
    assert found(train_table(tmp_path, ["a.jpg", "b.jpg"]), tmp_path) == []
