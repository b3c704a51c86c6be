"""Groups: named by files or tables, never divided, and what is said where they cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.build import open_images
from headstart.data.csv_table import csv
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.grouped_split import grouped_split
from headstart.data.groups import check_apart, describe_groups, match_groups
from headstart.data.image_folder import imagefolder
from headstart.data.splits import make_splits, split_table
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.images import MAKERS, class_folders, photo, planted_groups, write_csv
from tests.helpers.runs import composed

SETTINGS = {"val_fraction": 0.15, "test_fraction": 0.15, "split_seed": 0}


def grouped(*groups: list[int], **official: list[list[int]]) -> LabelledImages:
    """A source with groups, each given by the labels of its images."""

    def samples(split: str, groups: list[list[int]]) -> Samples:
        names = [f"{split}/{group}_{index}" for group, labels in enumerate(groups) for index in range(len(labels))]
        labels = np.array([label for labels in groups for label in labels])
        return Samples(names, labels, names, [name.partition("_")[0] for name in names])

    splits = {"train": samples("train", list(groups))} | {
        name: samples(name, given) for name, given in official.items()
    }
    return LabelledImages(("a", "b", "c")[: 1 + max(max(labels) for labels in groups)], splits)


def check_groups(source: LabelledImages, splits: dict[str, Samples]) -> None:
    """Every image is in one split, and so is every group."""
    names = [name for samples in splits.values() for name in samples.names]
    assert sorted(names) == sorted(name for samples in source.splits.values() for name in samples.names)
    sides: dict[str, str] = {}
    for split, samples in splits.items():
        assert samples.groups is not None
        assert all(sides.setdefault(group, split) == split for group in samples.groups)


# --- splits --------------------------------------------------------------------------------------------------

PURE = st.tuples(st.integers(0, 2), st.integers(1, 30)).map(lambda pair: [pair[0]] * pair[1])
MIXED = st.lists(st.integers(0, 2), min_size=1, max_size=30)
FRACTIONS = st.floats(0.02, 0.45)


@given(
    st.lists(PURE | MIXED, max_size=40), st.lists(st.integers(1, 9), min_size=9, max_size=9),
    FRACTIONS, FRACTIONS | st.just(0.0), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_group_is_divided_and_every_class_is_on_every_side(
    groups: list[list[int]], sizes: list[int], val: float, test: float, seed: int
) -> None:
    enough = [[index % 3] * size for index, size in enumerate(sizes)]  # three groups of each class alone
    source = grouped(*groups, *enough)
    splits = make_splits(source, val_fraction=val, test_fraction=test, split_seed=seed)
    check_groups(source, splits)
    for samples in splits.values():
        assert set(samples.labels.tolist()) == {0, 1, 2}
    again = make_splits(source, val_fraction=val, test_fraction=test, split_seed=seed)
    assert {name: s.names for name, s in splits.items()} == {name: s.names for name, s in again.items()}


def uneven(count: int = 80) -> LabelledImages:
    """Groups of 1 to 60 images, of three classes of which one is rarer."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, count, p=(0.5, 0.3, 0.2)).tolist()
    return grouped(*([label] * min(int(rng.geometric(0.06)), 60) for label in labels))


@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.1, 0.4), (0.33, 0.05)])
def test_sizes_and_classes_are_near_what_is_asked(fractions: tuple[float, float]) -> None:
    source = uneven()
    val, test = fractions
    splits = make_splits(source, val_fraction=val, test_fraction=test, split_seed=0)
    everything = source.splits["train"].labels
    for name, fraction in (("val", val), ("test", test)):
        assert len(splits[name]) == pytest.approx(fraction * len(everything), rel=0.1)
        counts = np.bincount(splits[name].labels, minlength=3) / len(splits[name])
        assert counts == pytest.approx(np.bincount(everything) / len(everything), abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_few_groups_are_split_as_well_as_they_can_be(seed: int) -> None:
    """Compared with all 4096 ways to choose from twelve groups."""
    rng = np.random.default_rng(seed)
    sizes = [[index % 2] * int(size) for index, size in enumerate(rng.geometric(0.08, 12))]
    samples = grouped(*sizes).splits["train"]
    counts = np.array([np.bincount(labels, minlength=2) for labels in sizes])
    wanted = 0.2 * counts.sum(axis=0)
    chosen = (np.arange(4096)[:, None] >> np.arange(12)) & 1
    on_both_sides = ((chosen @ (counts > 0) % 6) > 0).all(axis=1)  # six groups of each class
    least = np.abs(chosen @ counts - wanted).sum(axis=1)[on_both_sides].min()
    _, split_off = grouped_split(samples, wanted, seed, later=("train",), class_names=("a", "b"), name="val")
    found = np.abs(np.bincount(samples.labels[split_off], minlength=2) - wanted).sum()
    assert found - least <= 0.02 * wanted.sum()


def test_more_groups_than_are_dealt_one_by_one() -> None:
    source = grouped(*([index % 3] * (1 + index % 4) for index in range(600)))
    splits = make_splits(source, **SETTINGS)
    check_groups(source, splits)
    assert len(splits["test"]) == pytest.approx(0.15 * 1500, abs=2)
    assert np.bincount(splits["test"].labels) == pytest.approx(np.full(3, 75), abs=2)


def test_another_seed_makes_another_split() -> None:
    splits = [make_splits(uneven(), **{**SETTINGS, "split_seed": seed})["val"].names for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_few_training_images_of_each_class() -> None:
    source = uneven()
    few, all_ = (make_splits(source, **SETTINGS, train_per_class=number) for number in (10, None))
    assert np.bincount(few["train"].labels).tolist() == [10, 10, 10]
    assert set(few["train"].groups or ()) <= set(all_["train"].groups or ())
    assert few["val"].names == all_["val"].names


def test_official_splits_stay_and_missing_ones_come_from_train() -> None:
    source = grouped(*([index % 2] * 3 for index in range(20)), test=[[0, 1], [1]])
    splits = make_splits(source, **SETTINGS)
    assert splits["test"].names == source.splits["test"].names
    check_groups(source, splits)
    assert all(name.startswith("train/") for name in splits["val"].names)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [[0], [0], [0], [1], [1]],
            "class 'b' has images of 2 groups, too few for train, val and test: each needs one",
        ),
        ([[0], [0], [0], [1]], r"class 'b' has images of 1 group, too few for train, val and test.* Add groups of it"),
    ],
)
def test_too_few_groups_are_named(groups: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(grouped(*groups), **SETTINGS)


def test_classes_that_no_split_can_separate_are_named() -> None:
    with pytest.raises(
        DataError, match=r"no way was found to split off val by groups .*class '.', which has images of 2"
    ):
        make_splits(grouped([0, 1], [0, 2], [1, 2]), val_fraction=0.4, test_fraction=0, split_seed=0)


def test_a_group_in_two_official_splits_is_named(tmp_path: Path) -> None:
    for split, scenes in (("train", range(8)), ("val", range(6, 14))):
        for scene in scenes:
            photo(tmp_path / split / ("cat", "dog")[scene % 2] / f"scan{scene}_1.png", 0)
    data = composed("data=imagefolder", f"data.root={tmp_path}", r"data.group_pattern='(scan\d+)_'").data
    with pytest.raises(
        DataError,
        match=r"2 of 14 groups stand in more than one split .*: scan6 \(train and val\), scan7 \(train and val\)\.",
    ):
        open_images(data)
    many = [[0]] * 8
    both = grouped(*many, test=many).splits
    shared = {name: Samples(s.names, s.labels, s.names, [f"g{i}" for i in range(8)]) for name, s in both.items()}
    with pytest.raises(DataError, match="8 of 8 groups .* and 3 more. A model would be tested on .* Move each group"):
        check_apart(shared)


def test_a_note_says_how_far_from_stratified_the_splits_are() -> None:
    source = grouped(*[[0] * 10] * 12, *[[1] * 10] * 8)
    note = describe_groups(source, make_splits(source, **SETTINGS), {"val": 0.15, "test": 0.15})
    pattern = re.compile(
        r"20 groups, none in two splits: train 14 groups, 140 images; val 3 groups, 30 images \(30 asked\), class "
        r"fractions within 0\.067 of those of all images \([ab]: 0\.\d{3} and 0\.[46]00\); test 3 groups, 30 images .*"
    )
    assert pattern.fullmatch(note)
    official = grouped([0], [0, 0], [1], test=[[0], [1]])
    assert describe_groups(official, official.splits, {"val": 0.15, "test": 0.15}) == (
        "5 groups, none in two splits: train 3 groups, 4 images; test 2 groups, 2 images"
    )


def test_the_table_of_the_split_has_the_groups() -> None:
    header, first, *rest = split_table(grouped([0, 0], [1])).splitlines()
    assert (header, first) == ("image,class,split,group", "train/0_0,a,train,train/0")
    assert len(rest) == 2


# --- names of files ------------------------------------------------------------------------------------------


def test_the_group_is_the_capture_group_or_the_whole_match(tmp_path: Path) -> None:
    source = imagefolder(planted_groups(tmp_path, groups=6, images=2))
    for pattern, groups in (
        (r"(scene\d+)_", {f"scene{index}" for index in range(6)}),
        (r"scene\d+", {f"scene{index}" for index in range(6)}),
        (r"^(cat|dog)/", {"cat", "dog"}),  # the whole path below the root is searched
    ):
        assert set(match_groups(source, pattern, "imagefolder").splits["train"].groups or ()) == groups


@pytest.mark.parametrize("source", ["imagefolder", "csv", "pets", "caltech101", "emergency", "cats_dogs"])
def test_every_source_of_files_has_groups(source: str, tmp_path: Path) -> None:
    root = MAKERS[source](tmp_path)
    overrides = [r"data.group_pattern='(\d+)\.'"]
    if source == "csv":
        overrides += ["data.image_column=image_names", "data.label_column=emergency_or_not"]
    if source in ("imagefolder", "cats_dogs"):  # its splits use the same numbers
        overrides = [r"data.group_pattern='(\w+)/\w+/\d+\.'"]
    images = open_images(composed(f"data={source}", f"data.root={root}", *overrides).data)
    assert all(samples.groups is not None for samples in images.splits.values())
    assert "groups, none in two splits" in images.notes[-1]


def test_a_name_without_a_group_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, images=3)
    photo(tmp_path / "dog" / "scan1_1.png", 1)
    source = imagefolder(tmp_path)
    with pytest.raises(DataError, match=r"finds no group in 6 of 7 names, such as cat/0\.jpg\. Names are relative to"):
        match_groups(source, r"(scan\d+)_", "imagefolder")
    with pytest.raises(DataError, match="finds no group in 7 of 7 names"):  # an empty group is none
        match_groups(source, r"(x?)", "imagefolder")


@pytest.mark.parametrize("source", ["digits", "glyphs"])
def test_images_that_are_not_files_have_no_names(source: str) -> None:
    message = rf"data.group_pattern=\(x\) looks at the names of files, and the images of data={source} are not files"
    with pytest.raises(DataError, match=message):
        open_images(composed(f"data={source}", "data.group_pattern='(x)'").data)


def test_an_invalid_expression_is_refused_with_the_config() -> None:
    with pytest.raises(ConfigError, match=r"data.group_pattern=\(scan: expected a regular .*missing \), unterminated"):
        composed("data.group_pattern='(scan'")


# --- tables --------------------------------------------------------------------------------------------------


def table(root: Path, groups: list[str], name: str = "train.csv") -> Path:
    rows = [(f"{name}{index}.jpg", ("cat", "dog")[index % 2], group) for index, group in enumerate(groups)]
    for index, (file, *_) in enumerate(rows):
        photo(root / "images" / file, index % 2)
    return write_csv(root / name, [("image", "label", "patient"), *rows])


def test_a_column_of_groups(tmp_path: Path) -> None:
    table(tmp_path, [f"p{index // 4}" for index in range(48)])
    data = composed("data=csv", f"data.root={tmp_path}", "data.group_column=patient", "data.test_fraction=0.2").data
    images = open_images(data)
    assert (images.splits["train"].groups or ())[0].startswith("p")
    check_groups(csv(tmp_path, group_column="patient"), dict(images.splits))
    assert "12 groups, none in two splits" in images.notes[-1]
    assert data.description()["group_column"] == "patient"
    assert "group_column" not in composed("data=csv").data.description()


def test_a_test_table_has_groups_too(tmp_path: Path) -> None:
    table(tmp_path, [f"p{index // 2}" for index in range(16)])
    table(tmp_path, ["p7", "p8", "p9"], "test.csv")
    settings = ("data=csv", f"data.root={tmp_path}", "data.group_column=patient", "data.test_csv=test.csv")
    with pytest.raises(DataError, match=r"1 of 10 groups stand in more than one split .*: p7 \(train and test\)\."):
        open_images(composed(*settings).data)
    table(tmp_path, ["p8", "p8", "p9"], "test.csv")
    assert open_images(composed(*settings).data).splits["test"].groups == ["p8", "p8", "p9"]


def test_columns_and_cells_that_are_missing_are_named(tmp_path: Path) -> None:
    table(tmp_path, ["p1", "", "p2", " "])
    with pytest.raises(DataError, match=r"train.csv has no column 'case'; its columns are image, label, patient. Name"):
        csv(tmp_path, group_column="case")
    with pytest.raises(
        DataError,
        match=r"train.csv, line 3: the group of train.csv1.jpg is empty \(and 1 more\). Fill in column 'patient'",
    ):
        csv(tmp_path, group_column="patient")


def test_groups_are_given_once() -> None:
    with pytest.raises(
        ConfigError, match=r"data.group_column=patient and data.group_pattern=p\\d would group .* twice"
    ):
        composed("data=csv", "data.group_column=patient", r"data.group_pattern='p\d'")


def test_without_groups_nothing_is_said_of_them(folders: Path) -> None:
    settings = ("data=imagefolder", f"data.root={folders}", "data.test_fraction=0.3")
    images = open_images(composed(*settings).data)
    assert images.notes == []
    assert split_table(images).startswith("image,class,split\n")
