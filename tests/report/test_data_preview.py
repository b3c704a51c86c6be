"""`headstart look`: what the data are, before anything is trained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.cli.main import main
from headstart.data.dataset import Samples
from headstart.data.image_io import image_size
from headstart.report import data_preview
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.images import CLASSES, class_folders, photo, planted_groups
from tests.helpers.runs import read_rows


@pytest.fixture(scope="module")
def looked(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("look")
    data = ("data=imagefolder", f"data.root={hard}", "model=glyphnet", "augment=flip")
    main(["look", *data, "--out", str(out)])
    return out


def test_counts_are_those_of_the_folders(looked: Path, hard: Path) -> None:
    rows = {row.pop("class"): row for row in read_rows(looked / "counts.csv")}
    assert list(rows) == sorted(CLASSES)
    for name, row in rows.items():
        expected = {split: str(len(list((hard / split / name).iterdir()))) for split in ("train", "val", "test")}
        assert row == expected


def test_there_is_a_picture_of_each_kind(looked: Path) -> None:
    for name in ("counts", "sizes", "samples", "augmented"):
        with Image.open(looked / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 100, name
        assert pixels.std() > 5, name
    page = (looked / "index.html").read_text()
    assert "Nothing was skipped" in page
    assert "a &lt;b&gt;very long $name$" in page
    assert "Augmentation (flip)" in page
    assert all(url.startswith("data:") for url in re.findall(r'src="([^"]*)', page))


def test_what_was_skipped_and_what_is_broken_is_listed(hard: Path, tmp_path: Path, capsys: Any) -> None:
    root = Path(shutil.copytree(hard, tmp_path / "data"))
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / "ant" / "0.png").write_bytes(b"broken")
    main(["look", "data=imagefolder", f"data.root={root}", "model=glyphnet", "--out", str(tmp_path / "out")])
    assert f"look: {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "notes.txt" in page or "1 file" in page
    assert "0.png: not an image that can be read" in page


def test_groups_are_counted_and_listed(tmp_path: Path) -> None:
    root = planted_groups(tmp_path / "data", groups=12, images=4)
    photo(root / "cat" / "scene=1_9.png", 0)
    pattern = r"data.group_pattern=(scene=?\d+)_"  # as the shell passes it on
    main(["look", "data=imagefolder", f"data.root={root}", pattern, "model=glyphnet", "--out", str(tmp_path / "out")])
    rows = read_rows(tmp_path / "out" / "groups.csv")
    assert {row["group"] for row in rows} == {"scene=1", *(f"scene{index}" for index in range(12))}
    assert rows[0].keys() == {"group", "split", "images", "classes"}
    assert rows[-1] == {"group": "scene=1", "split": rows[-1]["split"], "images": "1", "classes": "cat 1"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "13 groups, none in two splits" in page
    assert "All 13 groups: <code>groups.csv</code>" in page
    cells = re.findall(r"<td>(cat|dog)</td>(?:<td class=\"number\">(\d+)</td>)+", page)
    assert [name for name, _ in cells[:2]] == ["dog", "cat"]  # the class with the fewest groups first


def test_without_groups_the_page_has_no_section_of_them(looked: Path) -> None:
    assert "Groups" not in (looked / "index.html").read_text()
    assert not (looked / "groups.csv").exists()


def test_names_from_the_data_are_text(tmp_path: Path) -> None:
    """A class or a file must not be able to run something in the reader's browser, or in a spreadsheet."""
    planted = "<img src=x onerror=alert(1)>"
    root = class_folders(tmp_path / "data", (f"=1+1{planted}", "dog"))
    (root / "dog" / f"{planted}.txt").touch()
    (root / "dog" / f"{planted}.png").write_bytes(b"broken")
    main(["look", "data=imagefolder", f"data.root={root}", "model=glyphnet", "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    assert planted not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3  # the class, the file that is skipped, the broken one
    assert (tmp_path / "out" / "counts.csv").read_text().splitlines()[1].startswith("'=1+1")


def test_weights_are_not_fetched(hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preprocessing of a network is known without them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    main(["look", "data=imagefolder", f"data.root={hard}", "model=mobilenet_v3_small", "--out", str(tmp_path / "out")])
    assert "224 × 224 pixels are the input of mobilenet_v3_small" in (tmp_path / "out" / "index.html").read_text()
    assert not (tmp_path / "torch").exists()


def test_by_default_it_goes_to_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    main(["look", "data.train_per_class=5"])  # the digits
    page = capsys.readouterr().out.partition("look: ")[2].strip()
    assert re.fullmatch(r"outputs/look/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d/index.html", page)
    assert "digits: 10 classes" in (tmp_path / page).read_text()


def test_mistakes_have_the_messages_of_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'agument'. Did you mean 'augment'"):
        main(["look", "agument=flip"])
    with pytest.raises(DataError, match="no such folder"):
        main(["look", "data=imagefolder", f"data.root={tmp_path / 'none'}"])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_file_is_that_of_the_upright_image(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == ((20, 30) if orientation >= 5 else (30, 20))


def test_of_many_files_a_sample_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_preview, "MEASURED", 10)
    for index in range(40):
        Image.new("RGB", (10 + index, 8)).save(tmp_path / f"{index}.png")
    files = [str(tmp_path / f"{index}.png") for index in range(40)]
    sizes, problems = data_preview.read_sizes({"train": Samples(files, np.zeros(40, dtype=np.int64), files)})
    assert sizes[:, 0].tolist() == list(range(10, 50, 4))
    assert problems == []
