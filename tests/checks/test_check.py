"""`headstart check`: what it finds, prints and leaves, and how it ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart.checks.findings import KINDS
from headstart.cli.main import main
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.images import class_folders, make_split_folders, photo, write_csv
from tests.helpers.runs import read_rows
from tests.helpers.session import Once


def plant(root: Path) -> None:
    """Writes images in official splits: a leak, a conflict and a broken file."""
    for number, split in enumerate(("train", "valid", "test")):
        for index in range(20):
            photo(
                root / split / ("cats", "dogs")[index // 10] / f"{index % 10}.jpg",
                index // 10,
                seed=20 * number + index,
            )
    shutil.copyfile(root / "train" / "cats" / "0.jpg", root / "test" / "cats" / "0.jpg")
    shutil.copyfile(root / "train" / "dogs" / "1.jpg", root / "train" / "cats" / "1.jpg")
    (root / "valid" / "dogs" / "2.jpg").write_bytes(b"broken")


@pytest.fixture(scope="module")
def planted(made_once: Once) -> Path:
    return made_once("planted", plant)


def check(root: Path, out: Path, *arguments: str) -> int:
    """Runs the files tier, and returns its exit status."""
    try:
        main(["check", "data=imagefolder", f"data.root={root}", "--tiers", "files", "--out", str(out), *arguments])
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


def test_what_was_planted_is_printed_the_worst_first_and_written(planted: Path, tmp_path: Path, capsys: Any) -> None:
    assert check(planted, tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split()[2] for line in lines[:-1]]
    assert [kind for kind in kinds if KINDS[kind].severity == "error"] == ["unreadable", "leak", "conflict"]
    assert kinds == sorted(kinds, key=[*KINDS].index)
    assert KINDS["leak"].advice in lines[kinds.index("leak")]
    assert lines[-1] == f"check: {tmp_path / 'out' / 'index.html'}"
    rows = {row["kind"]: row for row in read_rows(tmp_path / "out" / "issues.csv")}
    assert rows["unreadable"]["image"] == "valid/dogs/2.jpg"
    assert (rows["leak"]["image"], rows["leak"]["other_image"]) == ("test/cats/0.jpg", "train/cats/0.jpg")
    assert {rows["conflict"]["image"], rows["conflict"]["other_image"]} == {"train/cats/1.jpg", "train/dogs/1.jpg"}
    assert rows["leak"]["suggestion"] == KINDS["leak"].advice
    page = (tmp_path / "out" / "index.html").read_text()
    assert "python train.py data=csv" in page
    assert "train/cats/0.jpg" not in {row["image"] for row in read_rows(tmp_path / "out" / "clean.csv")}
    assert len(read_rows(tmp_path / "out" / "clean_test.csv")) == 20


def test_fail_on_decides_the_exit_status(planted: Path, tmp_path: Path) -> None:
    assert check(planted, tmp_path, "--fail-on", "near_leak,splits") == 0
    assert check(planted, tmp_path, "--fail-on", "near_leak,unreadable") == 1


def test_drop_leaves_kinds_out_of_clean_csv(planted: Path, tmp_path: Path) -> None:
    check(planted, tmp_path, "--drop", "unreadable, conflict")
    left = {row["image"] for row in read_rows(tmp_path / "clean.csv")}
    assert {"valid/dogs/2.jpg", "train/cats/1.jpg", "train/dogs/1.jpg"}.isdisjoint(left)
    assert len(left) == 40 - 4
    again = f"headstart check data=imagefolder data.root={planted} --tiers files --drop unreadable,conflict"
    assert again in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-on", "leaks"], "--fail-on=leaks: expected some of unreadable, .* Did you mean 'leak'?"),
        (["--drop", "wrapper"], "--drop=wrapper: expected some of unreadable"),
        (["--tiers", "file"], "--tiers=file: expected some of files, pixels, features. Did you mean 'files'?"),
        (["--tiers", ","], "--tiers=: expected some of files, pixels, features."),
    ],
)
def test_unknown_names_are_errors(arguments: list[str], message: str, planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check(planted, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_python_has_the_same_findings(planted: Path) -> None:
    result = headstart.check("data=imagefolder", f"data.root={planted}", tiers=["files"])
    assert {"unreadable": 1, "leak": 1, "conflict": 1, "copy": 2}.items() <= result.counts.items()
    assert [*result.counts] == sorted(result.counts, key=[*KINDS].index)
    assert len(result.table) == 60
    with pytest.raises(ConfigError, match="tiers=colours: expected some of files, pixels, features"):
        headstart.check("data=imagefolder", f"data.root={planted}", tiers=["colours"])


def test_images_that_training_refuses_are_checked_in_the_splits_that_they_have(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", ("cat", "dog"), images=6)
    photo(root / "rare" / "only.jpg", 2)
    shutil.copyfile(root / "cat" / "0.jpg", root / "cat" / "1.jpg")
    result = headstart.check("data=imagefolder", f"data.root={root}", tiers=["files"])
    assert result.counts["splits"] == result.counts["copy"] == 1
    assert "class 'rare' has a single image" in next(f.detail for f in result.findings if f.kind == "splits")
    assert set(result.table.splits.tolist()) == {0}


def test_groups_that_stand_in_two_official_splits_are_a_finding(tmp_path: Path) -> None:
    root = make_split_folders(tmp_path / "data")
    result = headstart.check("data=imagefolder", f"data.root={root}", r"data.group_pattern='/(\d)'", tiers=["files"])
    assert "10 of 10 groups stand in more than one split" in result.findings[0].detail
    assert result.findings[0].kind == "splits"


def test_images_that_do_not_exist_stop_the_check_as_they_stop_training(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", images=2)
    write_csv(tmp_path / "train.csv", [("image", "label"), ("cat/0.jpg", "cat"), ("dog/7.jpg", "dog")])
    with pytest.raises(DataError, match=r"names .*dog/7.jpg, which does not exist"):
        headstart.check("data=csv", f"data.root={tmp_path}", tiers=["files"])


def test_images_that_are_not_files_have_no_clean_csv(tmp_path: Path) -> None:
    main(["check", "data=digits", "--tiers", "files", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "issues.csv"}
    assert "these images are not files" in (tmp_path / "index.html").read_text()


def test_all_images_are_checked_though_few_are_trained_on(planted: Path, tmp_path: Path) -> None:
    check(planted, tmp_path, "data.train_per_class=2")
    assert len(read_rows(tmp_path / "clean.csv")) == 40 - 1
