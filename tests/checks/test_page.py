"""The page of a check: one small file that shows pairs, images and what to do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.checks.clean import clean_tables
from headstart.checks.copies import copy_findings
from headstart.checks.findings import KINDS, NOT_OF_IMAGES, Consequence, Finding, ordered
from headstart.checks.page import PAIRS, write_page
from headstart.checks.result import CheckResult
from headstart.checks.table import image_table
from headstart.data.build import open_images
from tests.helpers.runs import composed


def page_of(root: Path, folder: Path, findings: list[Finding], consequences: list[Consequence] | None = None) -> str:
    config = composed("data=imagefolder", f"data.root={root}")
    images = open_images(config.data)
    table = image_table(images)
    result = CheckResult(table, ordered(findings), consequences or [], list(images.notes), tested=True)
    clean = clean_tables(table, findings, tested=True)
    path = write_page(result, config, folder, clean=clean, overrides=["data=imagefolder", f"data.root={root}"])
    return path.read_text()


def test_the_worst_is_first_with_both_images_and_what_to_do(hard: Path, tmp_path: Path) -> None:
    table = image_table(open_images(composed("data=imagefolder", f"data.root={hard}").data))
    names = [*table.samples.names]
    pair = [names.index("train/ant/0.png"), names.index("test/ant/3.png")]
    findings = [
        Finding("wrapper", "bytes", score=0.81, detail="file size alone tells 81 % of the labels"),
        Finding("dark", "val/zebra/1.png", score=0.7, detail="mean 3 of 255"),
        *copy_findings(table, [pair], "identical bytes"),
    ]
    page = page_of(hard, tmp_path, findings, [Consequence("test", 45, 40, 44, 39)])
    titles = re.findall(r'<h2 id="([a-z_]+)">', page)
    assert titles == ["consequences", "leak", "wrapper", "copy", "dark", "clean"]
    leak = page[page.index('<h2 id="leak">') : page.index('<h2 id="wrapper">')]
    assert KINDS["leak"].advice in leak
    assert leak.count("data:image/jpeg") == 2
    assert "test/ant/3.png" in leak
    assert "train/ant/0.png" in leak
    assert "ant, test" in leak
    assert "88.9%" in page  # 40 of 45
    assert "76.5%" in page  # the lower bound of Wilson's interval
    assert "88.6%" in page  # 39 of 44
    assert "<b>very" not in page
    assert all(url.startswith("data:") for url in re.findall(r'src="([^"]*)', page))
    assert "1 image is left out because the test split has the same picture" in page
    assert f"headstart check data=imagefolder data.root={hard}" in page


def test_one_picture_in_many_files_does_not_fill_a_section(hard: Path, tmp_path: Path) -> None:
    table = image_table(open_images(composed("data=imagefolder", f"data.root={hard}").data))
    names = [f"train/{kind}/{index}.png" for index in range(3) for kind in ("ant", "zebra")]
    other = ["train/ant/9.png", "train/zebra/9.png"]
    groups = [[table.samples.names.index(name) for name in group] for group in (names, other)]
    conflicts = [found for found in copy_findings(table, groups, "") if found.kind == "conflict"]
    page = page_of(hard, tmp_path, conflicts)
    assert len(conflicts) == 10
    assert page.index("train/zebra/9.png") < page.index("train/zebra/1.png")


def test_what_a_label_is_stands_below_its_image_once(hard: Path, tmp_path: Path) -> None:
    found = Finding("label", "train/ant/0.png", score=4.3214, detail="ant, train; looks like zebra (98 % against 2 %)")
    page = page_of(hard, tmp_path, [found])
    assert page.count("ant, train") == 2  # the text below the picture, and the one in its place
    assert "<p>looks like zebra (98 % against 2 %)</p>" in page


def test_an_image_that_cannot_be_read_is_named_without_a_picture(hard: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(hard, tmp_path / "data"))
    (root / "train" / "ant" / "0.png").write_bytes(b"broken")
    page = page_of(root, tmp_path, [Finding("unreadable", "train/ant/0.png", detail="unknown format")])
    assert "cannot be read" in page
    assert "train/ant/0.png" in page
    assert "unknown format" in page
    assert "data:image/jpeg" not in page


def test_the_page_stays_below_10_mb_whatever_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)  # noise is what JPEG compresses least
    for index in range(60):
        path = tmp_path / "data" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)).save(path)
    names = [f"{('cat', 'dog')[index % 2]}/{index}.png" for index in range(60)]
    pairs = [kind for kind in KINDS if kind.endswith(("copy", "leak", "conflict"))]
    findings = [Finding(kind, names[index % 60], names[(index + 1) % 60]) for kind in pairs for index in range(100)]
    single = [kind for kind in KINDS if kind not in pairs and kind not in NOT_OF_IMAGES]
    findings += [Finding(kind, names[index % 60]) for kind in single for index in range(100)]
    findings += [Finding(kind, f"column {index}") for kind in NOT_OF_IMAGES for index in range(100)]
    page = page_of(tmp_path / "data", tmp_path, findings)
    assert 2e6 < len(page) < 10e6
    assert f"And {100 - PAIRS} more" in page
    assert page.count("And ") == len(KINDS)


@pytest.mark.parametrize("severities", [("error", "warning"), ("warning",), ("note",), ()])
def test_the_headline_counts_what_is_worst(severities: tuple[str, ...], folders: Path, tmp_path: Path) -> None:
    kinds = {"error": "unreadable", "warning": "blank", "note": "dark"}
    page = page_of(folders, tmp_path, [Finding(kinds[severity], "cat/0.jpg") for severity in severities])
    headline = re.search(r'class="headline">(.*)</p>', page)
    assert headline is not None
    expected = {"error": "1 error", "warning": "1 warning, no error", "note": "Nothing harmful was found"}
    assert headline[1] == (expected[severities[0]] if severities else "Nothing was found")
