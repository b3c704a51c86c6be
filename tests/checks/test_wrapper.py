"""Whether the label can be read off the wrapper: planted leaks are found, and nothing else is reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable, image_table
from headstart.checks.wrapper import wrapper_findings
from headstart.data.dataset import Samples
from headstart.data.image_folder import imagefolder

CAMERA = 272  # of EXIF


def table_of(labels: NDArray[np.int64], groups: Sequence[str] | None = None) -> ImageTable:
    names = [f"{index}.jpg" for index in range(len(labels))]
    samples = Samples(names, labels, names, groups)
    classes = [f"class {index}" for index in range(labels.max(initial=0) + 1)]
    return ImageTable(samples, np.zeros(len(labels), dtype=np.int64), classes)


def noise(rng: np.random.Generator, images: int, columns: int) -> NDArray[np.float32]:
    return rng.normal(size=(images, columns)).astype(np.float32)


def found(
    labels: NDArray[np.int64], columns: dict[str, NDArray[np.float64]], **options: NDArray[np.int64]
) -> dict[str, Finding]:
    values = np.stack(list(columns.values()), axis=1).astype(np.float32)
    findings = wrapper_findings(table_of(labels), list(columns), values, **options)
    assert all(finding.kind == "wrapper" for finding in findings)
    return {finding.image: finding for finding in findings}


# --- files ---------------------------------------------------------------------------------------------------


def leaking(root: Path, leak: str, told: float = 0.85, images: int = 120) -> ImageTable:
    """Writes root/CLASS/N.jpg, noise of random sizes: only a leak tells the class, of that fraction of the images."""
    rng = np.random.default_rng(0)
    for index in range(images):
        label = index % 2
        marked = (label == 1) == (rng.random() < told)
        image = Image.fromarray(rng.integers(0, 256, (24, int(rng.integers(20, 30)), 3), dtype=np.uint8))
        if leak == "border":
            framed = Image.new("RGB", (image.width + 8, image.height + 8), "black" if marked else "white")
            framed.paste(image, (4, 4))
            image = framed
        exif = Image.Exif()
        exif[CAMERA] = "scanner" if leak == "camera" and marked else f"phone {rng.integers(3)}"
        path = root / ("benign", "malignant")[label] / f"{rng.integers(10**9)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95 if leak == "file size" and marked else 75, exif=exif)
    return image_table(imagefolder(str(root)))


def columns_of(table: ImageTable) -> dict[str, NDArray[np.float64]]:
    rows = []
    cameras: dict[str, int] = {}
    for path in table.samples.images:
        with Image.open(path) as image:
            camera = cameras.setdefault(image.getexif()[CAMERA], len(cameras))
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
        rows.append((Path(path).stat().st_size, pixels.shape[1], camera, *edges, *pixels.mean(axis=(0, 1))))
    channels = ("red", "green", "blue")
    names = ("file size", "width", "camera", *(f"{part} {c}" for part in ("border", "mean") for c in channels))
    return dict(zip(names, np.array(rows).T, strict=True))


@pytest.mark.parametrize("leak", ["file size", "border", "camera"])
def test_a_planted_leak_is_found(tmp_path: Path, leak: str) -> None:
    table = leaking(tmp_path, leak)
    findings = found(table.samples.labels, columns_of(table))
    assert set(findings) == {leak, "all columns"}
    assert 0.75 <= findings[leak].score <= 0.95
    percent = round(100 * findings[leak].score)
    assert findings[leak].detail.startswith(f"{leak} alone tells {percent} % of the labels (chance 50 %, p = 0.005)")
    assert re.match(r"all columns together tell \d+ % of the labels \(chance 50 %", findings["all columns"].detail)


def test_files_without_a_leak_are_no_finding(tmp_path: Path) -> None:
    table = leaking(tmp_path, "nothing")
    assert found(table.samples.labels, columns_of(table)) == {}


# --- significance and effect ---------------------------------------------------------------------------------


def test_noise_is_no_finding_however_many_columns_there_are() -> None:
    """Without a correction for 30 columns, half of the rounds would report one."""
    alarms = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(60) % 2)
        alarms += bool(wrapper_findings(table_of(labels), [f"c{i}" for i in range(30)], noise(rng, 60, 30), seed=seed))
    assert alarms <= 1


def test_a_difference_that_is_significant_but_small_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(8000) % 2
    findings = found(labels, {"file size": rng.normal(size=8000) + 0.25 * labels, "width": rng.normal(size=8000)})
    assert findings == {}  # 55 % of the labels


def test_imbalance_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(600) < 0.05).astype(np.int64)
    assert found(labels, {"file size": rng.normal(size=600), "width": rng.integers(3, size=600)}) == {}


def test_the_rare_class_of_imbalanced_ones_is_found() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(600) < 0.05).astype(np.int64)
    findings = found(labels, {"file size": rng.normal(size=600), "file format": labels.astype(float)})
    assert findings["file format"].score == 1


def test_columns_that_tell_only_together_are_found() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    width = rng.integers(0, 2, 400)
    findings = found(labels, {"width": 200.0 + width, "height": 200.0 + (width ^ labels), "file size": rng.random(400)})
    assert set(findings) == {"all columns"}
    assert findings["all columns"].score > 0.9


def test_the_most_telling_column_is_first() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    columns = {
        "width": labels + rng.normal(0, 0.8, 300),
        "camera": labels + 0.0,
        "file size": labels + rng.normal(0, 0.4, 300),
    }
    findings = found(labels, columns)
    assert list(findings) == ["camera", "file size", "width", "all columns"]
    assert "chance 33 %" in findings["camera"].detail


def test_missing_values_tell() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    findings = found(labels, {"JPEG quality": np.where(labels == 1, np.nan, 75.0), "width": rng.random(200)})
    assert findings["JPEG quality"].score == 1


def test_the_same_seed_finds_the_same() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    columns = {"file size": labels + rng.normal(0, 0.5, 200), "width": rng.random(200)}
    assert found(labels, columns) == found(labels, columns)


# --- groups --------------------------------------------------------------------------------------------------


def test_copies_in_two_folds_would_tell_each_others_labels() -> None:
    """A file size that is that of the copies and of no other image is no leak."""
    rng = np.random.default_rng(0)
    pictures = np.repeat(np.arange(12), 20)
    labels = pictures % 2
    columns = {"file size": rng.permutation(12)[pictures] + 0.0, "width": rng.permutation(12)[pictures] + 0.0}
    assert found(labels, columns)["file size"].score == 1
    assert found(labels, columns, groups=pictures) == {}
    values = np.stack(list(columns.values()), axis=1).astype(np.float32)
    grouped = table_of(labels, [f"patient {picture}" for picture in pictures])
    assert wrapper_findings(grouped, list(columns), values) == []


def test_a_leak_among_groups_is_found() -> None:
    rng = np.random.default_rng(0)
    pictures = np.arange(200) // 2
    labels = pictures % 2
    findings = found(labels, {"camera": labels + 0.0, "width": rng.random(200)}, groups=pictures)
    assert findings["camera"].score == 1


# --- content and names ---------------------------------------------------------------------------------------


def test_content_is_no_wrapper() -> None:
    """Grass is green up to the border, and names say the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    green = 80 + 60 * labels + rng.normal(0, 12, 200)
    border = {f"border {channel}": green + rng.normal(0, 12, 200) for channel in ("red", "green", "blue")}
    sides = {side: rng.integers(200, 204, 200) for side in ("width", "height")}
    columns = {"mean green": green, **border, "length of the file name": labels + 3.0, **sides}
    assert found(labels, columns) == {}


def test_numbers_in_names_are_reported_with_a_doubt_and_by_themselves() -> None:
    labels = (np.arange(200) >= 100).astype(np.int64)
    rng = np.random.default_rng(0)
    columns = {"number in the file name": np.arange(200.0), "width": rng.random(200), "height": rng.random(200)}
    findings = found(labels, columns)
    assert set(findings) == {"number in the file name"}
    assert "a network does not see names" in findings["number in the file name"].detail


def test_file_size_without_another_difference_may_be_content() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    alone = {"file size": labels + rng.normal(0, 0.3, 200), "JPEG quality": rng.integers(3, size=200)}
    assert "it may be the content" in found(labels, alone)["file size"].detail
    assert "content" not in found(labels, alone | {"JPEG quality": labels})["file size"].detail


# --- odd tables ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    npst.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 12)),
    st.integers(0, 3),
    st.sampled_from(["noise", "constant", "missing", "infinite"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_odd_tables_are_no_error(
    labels: NDArray[np.int64], columns: int, values: str, grouped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = noise(rng, len(labels), columns)
    if values == "constant":
        table[:] = 1
    elif values == "missing":
        table[rng.random(table.shape) < 0.5] = np.nan
    elif values == "infinite":
        table[rng.random(table.shape) < 0.3] = np.inf
    groups = rng.integers(0, 9, len(labels)) if grouped else None
    for finding in wrapper_findings(table_of(labels), ["a", "border red", "b"][:columns], table, groups=groups):
        assert 0 <= finding.score <= 1


def test_nothing_is_said_of_images_that_cannot_be_read() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    columns = np.where(labels[:, np.newaxis] == 1, np.nan, noise(rng, 200, 3))
    columns[:20] = noise(rng, 20, 3)
    assert wrapper_findings(table_of(labels), ["a", "b", "c"], columns.astype(np.float32)) == []


def test_many_images_of_many_classes_are_sampled() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 300, 30_000)
    labels[:40] = np.arange(300, 340)  # classes of one image
    columns = {"date in EXIF data": labels + rng.normal(0, 0.1, len(labels)), "width": rng.random(len(labels))}
    findings = found(labels, columns)
    assert findings["date in EXIF data"].score > 0.5
    assert "chance 1.0 %" in findings["date in EXIF data"].detail
