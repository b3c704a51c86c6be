"""clean.csv: what data=csv trains on, with copies on one side of every split."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.checks.clean import Clean, clean_tables
from headstart.checks.copies import copy_findings
from headstart.checks.findings import Finding
from headstart.checks.table import ImageTable, image_table
from headstart.config.schema import Config
from headstart.data.build import open_images
from headstart.data.csv_table import csv
from headstart.data.dataset import LabelledImages, Samples, file_samples
from tests.helpers.images import class_folders, make_split_folders
from tests.helpers.runs import composed, read_rows


def table_of(root: Path, *overrides: str) -> tuple[ImageTable, Config]:
    config = composed("data=imagefolder", f"data.root={root}", *overrides)
    return image_table(open_images(config.data)), config


def index_of(table: ImageTable, name: str) -> int:
    return list(table.samples.names).index(name)


def findings_on(table: ImageTable, *groups: Sequence[str], prefix: str = "") -> list[Finding]:
    return copy_findings(table, [[index_of(table, name) for name in group] for group in groups], "copies", prefix)


def group_of(clean: Clean) -> dict[str, str]:
    return {name: group for name, _, group in (*clean.train, *clean.test)}


def test_copies_are_one_group_and_stay_on_one_side_of_every_split(folders: Path, tmp_path: Path) -> None:
    table, config = table_of(folders)
    exact = findings_on(table, *((f"cat/{index}.jpg", f"cat/{index + 1}.jpg") for index in (0, 4, 6)))
    near = findings_on(table, ("cat/1.jpg", "cat/2.jpg"), prefix="near_")
    clean = clean_tables(table, [*exact, *near], tested=False)
    clean.write(tmp_path)
    groups = group_of(clean)
    assert groups["cat/0.jpg"] == groups["cat/1.jpg"] == groups["cat/2.jpg"]
    assert len(set(groups.values())) == 20 - 4
    command = shlex.split(clean.command(config.data, tmp_path, ["data=imagefolder", f"data.root={folders}", "lr=0.1"]))
    assert command[:2] == ["python", "train.py"]
    assert command[-1] == "lr=0.1"
    trained = composed(*command[2:])
    assert (trained.data.val_fraction, trained.data.test_fraction) == (0.15, 0.15)
    images = open_images(trained.data)
    sides = [set(samples.groups or ()) for samples in images.splits.values()]
    assert len(sides) == 3
    assert sum(map(len, sides)) == len(set.union(*sides)) == 16
    assert sum(map(len, images.splits.values())) == 20


def test_groups_of_the_data_are_joined_with_copies(folders: Path) -> None:
    table, _ = table_of(folders, r"data.group_pattern='/(\d)'")  # cat/3 and dog/3 are one group
    clean = clean_tables(table, findings_on(table, ("cat/3.jpg", "dog/5.jpg")), tested=False)
    groups = group_of(clean)
    assert len({groups[f"{name}/{index}.jpg"] for name in ("cat", "dog") for index in (3, 5)}) == 1
    assert len(set(groups.values())) == 9


def test_an_official_test_split_is_kept_and_its_copies_are_left_out_of_training(tmp_path: Path) -> None:
    root = make_split_folders(tmp_path / "data")
    table, config = table_of(root)
    findings = findings_on(table, ("train/cats/1.jpg", "test/cats/1.jpg"), ("test/dogs/0.jpg", "test/dogs/2.jpg"))
    findings += findings_on(table, ("valid/cats/4.jpg", "train/cats/1.jpg"), prefix="near_")
    findings += [Finding("blank", "test/cats/9.jpg"), Finding("blank", "train/cats/9.jpg")]
    clean = clean_tables(table, findings, tested=True, drop=("blank", "copy"))
    left_out = set(table.samples.names) - group_of(clean).keys()
    assert left_out == {"train/cats/1.jpg", "valid/cats/4.jpg", "train/cats/9.jpg"}
    assert {name for name, _, _ in clean.test} == {
        f"test/{name}/{index}.jpg" for name in ("cats", "dogs") for index in range(10)
    }
    assert clean.notes == [
        "2 images are left out because the test split has the same picture",
        "1 image is left out by --drop",
    ]
    clean.write(tmp_path)
    assert {row["image"] for row in read_rows(tmp_path / "clean_test.csv")} == {name for name, _, _ in clean.test}
    images = open_images(composed(*shlex.split(clean.command(config.data, tmp_path, []))[2:]).data)
    assert len(images.splits["test"]) == 20
    assert len(images.splits["train"]) + len(images.splits["val"]) == 37


def test_drop_leaves_out_copies_conflicts_and_single_images(folders: Path) -> None:
    table, _ = table_of(folders)
    findings = findings_on(table, ("cat/0.jpg", "cat/1.jpg"), ("cat/2.jpg", "cat/3.jpg", "dog/3.jpg"))
    findings.append(Finding("label", "dog/9.jpg", score=0.9))

    def left_out(*drop: str) -> set[str]:
        return set(table.samples.names) - group_of(clean_tables(table, findings, tested=False, drop=drop)).keys()

    first = min(("cat/2.jpg", "cat/3.jpg", "dog/3.jpg"), key=lambda name: index_of(table, name))
    pair = min(("cat/0.jpg", "cat/1.jpg"), key=lambda name: index_of(table, name))
    assert left_out() == set()
    assert left_out("copy") == {"cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/3.jpg"} - {first, pair}
    assert left_out("conflict") == {"cat/2.jpg", "cat/3.jpg", "dog/3.jpg"}
    assert left_out("label") == {"dog/9.jpg"}


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)


@given(names=st.lists(NAMES, min_size=4, max_size=8, unique=True), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_and_groups_survive_the_table(names: list[str], data: Any, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in names:
        try:
            (root / name).write_bytes(b"")
        except (OSError, UnicodeEncodeError):
            return  # no name of a file here
    labels = [index % 2 for index in range(len(names))]
    pairs = data.draw(st.lists(st.sampled_from(range(len(names))), min_size=2, max_size=3, unique=True))
    table = image_table(
        LabelledImages(("a", "b"), {"train": file_samples([str(root / n) for n in names], labels, root)})
    )
    clean = clean_tables(table, copy_findings(table, [pairs], "copies"), tested=False)
    clean.write(tmp_path)
    if len({label for _, label, _ in clean.train}) < 2:
        return
    read: Samples = csv(clean.root, images=".", train_csv=str(tmp_path / "clean.csv"), group_column="group").splits[
        "train"
    ]
    assert [*read.names] == [name for name, _, _ in clean.train]
    assert read.groups == [group for _, _, group in clean.train]
    groups = group_of(clean)
    assert len({groups[names[index]] for index in pairs if names[index] in groups}) <= 1
    assert {name for name in names if name == name.strip()} == set(read.names)


def test_what_a_table_cannot_hold_is_left_out_and_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", images=4)
    (root / "cat" / "0.jpg").rename(root / "cat" / "0\udcff.jpg")
    (root / "cat" / "1.jpg").rename(root / "cat" / '=1, "one".jpg')
    table, _ = table_of(root, "data.val_fraction=0", "data.test_fraction=0")
    clean = clean_tables(table, [], tested=False)
    clean.write(tmp_path)
    assert len(clean.train) == 7
    assert "1 image is left out because a table cannot hold" in clean.notes[0]
    assert r"'cat/0\udcff.jpg'" in clean.notes[0]
    read = csv(root, images=".", train_csv=str(tmp_path / "clean.csv"), group_column="group")
    assert 'cat/=1, "one".jpg' in read.splits["train"].names


@pytest.mark.parametrize("start", [".", "..", "elsewhere/../data"])
def test_the_command_finds_images_from_where_the_check_ran(start: str, tmp_path: Path, monkeypatch: Any) -> None:
    root = class_folders(tmp_path / "data", images=4)
    (tmp_path / "elsewhere").mkdir()
    (root / "inner").mkdir()
    monkeypatch.chdir({".": root, "..": root / "cat"}.get(start, tmp_path))
    if start == ".":
        (root / "inner").rmdir()
    else:
        shutil.rmtree(root / "inner")
    table, config = table_of(Path(start))
    clean = clean_tables(table, [], tested=False)
    clean.write(tmp_path / "out (1)")
    command = shlex.split(clean.command(config.data, tmp_path / "out (1)", []))[2:]
    assert sum(map(len, open_images(composed(*command).data).splits.values())) == 8
