"""Every source in its real file format, and the messages for files that are not as expected."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from headstart.data.build import open_source
from headstart.data.csv_table import csv, path_inside
from headstart.data.datamodule import ImageDataset
from headstart.data.image_folder import imagefolder
from headstart.data.image_io import image_size, read_image, read_thumbnail
from headstart.utils.errors import DataError
from tests.helpers.disk import forbidden, unprivileged
from tests.helpers.images import (
    class_folders,
    make_caltech101,
    make_emergency,
    make_pets,
    make_split_folders,
    make_stl10,
    photo,
    write_csv,
)

# --- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders(validation: str, tmp_path: Path) -> None:
    source = imagefolder(make_split_folders(tmp_path, splits=("train", validation)))
    assert source.class_names == ("cats", "dogs")
    assert set(source.splits) == {"train", "val"}
    assert source.splits["val"].names[0] == f"{validation}/cats/0.jpg"
    assert source.splits["val"].labels.tolist() == [0] * 10 + [1] * 10


def test_folders_without_splits(folders: Path) -> None:
    assert {name: len(s) for name, s in imagefolder(folders).splits.items()} == {"train": 20}


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    source = imagefolder(class_folders(tmp_path, ("bus", "car", "train")))
    assert source.class_names == ("bus", "car", "train")


def test_what_has_no_image_extension_is_skipped_and_counted(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name in ("notes.txt", "a.svg", "b.db", "c.psd", "d.md", "e.md"):
        (tmp_path / "cat" / name).write_text("a")
    (tmp_path / "cat" / ".DS_Store").write_text("b")
    photo(tmp_path / "cat" / "more" / "UPPER.JPG", 0)
    source = imagefolder(tmp_path)
    assert len(source.splits["train"]) == 21  # a folder within a class counts for it
    skipped = "cat/a.svg, cat/b.db, cat/c.psd, cat/d.md, cat/e.md and 1 more"
    assert source.notes == [f"6 files without an image extension were skipped in {tmp_path}: {skipped}"]


def test_first_frames_of_gifs_and_avifs_are_images(tmp_path: Path) -> None:
    class_folders(tmp_path, images=2)
    frames = [Image.new("RGB", (40, 36), colour) for colour in ("red", "blue")]
    for name in ("b.gif", "c.avif"):
        frames[0].save(tmp_path / "cat" / name, save_all=True, append_images=frames[1:])
    images = imagefolder(tmp_path).splits["train"].images
    for name in ("b.gif", "c.avif"):
        red, _, blue = read_image(next(image for image in images if image.endswith(name))).getpixel((5, 5))
        assert red > 200 > 50 > blue


def test_what_is_no_regular_file_is_no_image(tmp_path: Path) -> None:
    """Reading a pipe, a socket or a device would never end."""
    class_folders(tmp_path, images=2)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "dog" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dog" / "linked.jpg").symlink_to(tmp_path / "cat" / "0.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dog" / "socket.jpg"))
    source = imagefolder(tmp_path)
    assert len(source.splits["train"]) == 5  # a link to an image is one
    named = "cat/pipe.jpg, dog/socket.jpg, dog/zero.png"
    assert source.notes == [f"3 that are not regular files were skipped in {tmp_path}: {named}"]
    for path, kind in ((tmp_path / "cat" / "pipe.jpg", "a pipe"), (tmp_path / "dog" / "zero.png", "a device")):
        for read in (read_image, image_size, lambda path: read_thumbnail(path, 10)):
            with pytest.raises(DataError, match=rf"{path.name}: .*{kind}, not a regular file"):
                read(path)


def test_a_link_to_nothing_is_named_before_training(tmp_path: Path) -> None:
    class_folders(tmp_path, images=2)
    (tmp_path / "cat" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"cat/gone.jpg cannot be read: no such file, or a link to none. Make it"):
        imagefolder(tmp_path)


def test_what_this_user_may_not_read_is_named_before_training(tmp_path: Path) -> None:
    class_folders(tmp_path, images=3)
    write_csv(tmp_path / "train.csv", [("image", "label"), ("cat/0.jpg", "a"), ("dog/0.jpg", "b")])
    read_table = partial(csv, images=".")
    with unprivileged():
        assert len(imagefolder(tmp_path).splits["train"]) == 6
        for read, names, message in (
            (imagefolder, ("",), f"{tmp_path}: Permission denied. Make it readable, or take it out of the data."),
            (imagefolder, ("cat",), f"{tmp_path / 'cat'}: Permission denied. Make it readable"),
            (
                imagefolder,
                ("cat/1.jpg", "dog/2.jpg"),
                r"cat/1.jpg cannot be read: permission denied \(and 1 more\). Make",
            ),
            (read_table, ("dog/0.jpg",), "dog/0.jpg cannot be read: permission"),
            (read_table, ("train.csv",), r"train.csv cannot be read as .*denied"),
        ):
            with ExitStack() as stack:
                for name in names:
                    stack.enter_context(forbidden(tmp_path / name))
                with pytest.raises(DataError, match=message):
                    read(tmp_path)


def test_folders_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    class_folders(tmp_path / "one", ("cat",))
    class_folders(tmp_path / "hollow")
    (tmp_path / "hollow" / "fish").mkdir()
    (tmp_path / "hollow" / "fish" / "a.txt").touch()
    make_split_folders(tmp_path / "both", splits=("train", "val", "valid"))
    make_split_folders(tmp_path / "headless", splits=("val",))
    for name, message in (
        ("gone", "gone: no such folder. Give the folder of your images as data.root=FOLDER"),
        ("empty", "empty: expected one folder for each class"),
        ("one", "one has a single class folder, cat: at least two"),
        ("hollow", r"fish: no image in this class folder \(a.txt\)"),
        ("both", "more than one val folder, val and valid: keep one"),
        ("headless", "has a folder val and no folder train"),
    ):
        with pytest.raises(DataError, match=message):
            imagefolder(tmp_path / name)


def test_split_folders_in_capitals_and_others_beside_them(tmp_path: Path) -> None:
    make_split_folders(tmp_path, splits=("Train", "Test", "more"))
    (tmp_path / "Train" / ".ipynb_checkpoints").mkdir()
    source = imagefolder(tmp_path)
    assert set(source.splits) == {"train", "test"}
    assert source.notes == [f"not a split, left out: more in {tmp_path}"]


@pytest.mark.parametrize("names", [("train", "test1"), ("training", "testing"), ("train", "val"), ("Train_set", "dev")])
def test_split_folders_without_class_folders_are_no_classes(names: tuple[str, str], tmp_path: Path) -> None:
    class_folders(tmp_path, names)
    with pytest.raises(DataError, match="which look like splits, without a folder for each class in them"):
        imagefolder(tmp_path)


def test_classes_that_differ_between_splits_are_named(tmp_path: Path) -> None:
    make_split_folders(tmp_path, splits=("train", "val", "test"))
    shutil.move(tmp_path / "test" / "dogs", tmp_path / "test" / "dgos")
    with pytest.raises(DataError, match="classes of test are not those of train: .* lacks dogs and has dgos"):
        imagefolder(tmp_path)


# --- tables --------------------------------------------------------------------------------------------------

LONG = "9" * 5000


def write_labels(folder: Path, *rows: tuple[str, object], file: str = "train.csv") -> None:
    write_csv(folder / file, [("image", "label"), *rows])


def test_a_table_of_labels(tmp_path: Path) -> None:
    make_emergency(tmp_path)
    source = csv(
        tmp_path,
        train_csv="*train.csv",
        image_column="image_names",
        label_column="emergency_or_not",
        classes={"0": "non-emergency", "1": "emergency"},
        test_csv="test.csv",
    )
    assert source.class_names == ("non-emergency", "emergency")
    assert source.splits["train"].labels.tolist() == [0, 1] * 20
    assert source.splits["train"].names[:2] == ["0.jpg", "1.jpg"]
    (note,) = source.notes
    assert note.endswith(
        "test.csv has no column 'emergency_or_not' (it has image_names): 1 images to predict, no test split"
    )


def test_a_labelled_test_table_is_the_test_split(tmp_path: Path) -> None:
    make_emergency(tmp_path)
    photo(tmp_path / "images" / "test" / "1.jpg", 1)
    write_csv(tmp_path / "test.csv", [("emergency_or_not", "image_names"), (1, "test/1.jpg")])
    source = csv(
        tmp_path, image_column="image_names", label_column="emergency_or_not", test_csv=str(tmp_path / "test.csv")
    )
    assert source.splits["test"].labels.tolist() == [1]


@pytest.mark.parametrize(("labels", "names"), [((10, 9, 1), ("1", "9", "10")), ((10, 9, LONG), ("10", "9", LONG))])
def test_labels_that_are_numbers_of_a_few_digits_are_sorted_as_numbers(
    labels: tuple[object, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    class_folders(tmp_path, ("images",), images=3)
    write_labels(tmp_path, *((f"{n}.jpg", x) for n, x in enumerate(labels)))
    assert csv(tmp_path).class_names == names


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("file", "label"), ("0.jpg", 1)], "has no column 'image'; its columns are file, label.* data.image_column"),
        ([("image", "class"), ("0.jpg", 1)], "has no column 'label'; its columns are image, class.*data.label_column"),
        ([("image", "label")], "has a header and no rows"),
        ([("image", "label"), ("0.jpg", "a"), ("1.jpg", "")], "line 3: the label of 1.jpg is empty"),
        ([("image", "label"), ("0.jpg", "a"), ("gone.jpg", "b")], "names .*gone.jpg, which does not exist"),
        ([("image", "label"), ("0.jpg", "a"), ("../0.jpg", "b")], r"line 3: the file name '\.\./0.jpg' does not stay"),
        ([("image", "label"), ("0.jpg", "a"), ("/etc/passwd", "b")], "'/etc/passwd' does not stay inside"),
        ([("image", "label"), ("0.jpg", "a"), ("", "b")], "line 3: the file name '' does not stay inside"),
        ([("image", "label"), ("0.jpg", "a"), ("0.jpg", "b")], "names .*0.jpg 2 times"),
        ([("image", "label"), ("0.jpg", "a"), ("1.jpg", "a")], "column 'label' has a single label"),
    ],
)
def test_tables_that_are_not_as_they_should_be(rows: list[tuple[str, object]], message: str, tmp_path: Path) -> None:
    make_emergency(tmp_path, images=2)
    write_csv(tmp_path / "train.csv", rows)
    with pytest.raises(DataError, match=message):
        csv(tmp_path)


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images: no such folder of images"):
        csv(tmp_path)
    make_emergency(tmp_path, images=2)
    with pytest.raises(DataError, match=r"labels.csv: no such table. Give it as data.train_csv=FILE"):
        csv(tmp_path, train_csv="labels.csv")
    with pytest.raises(DataError, match=r"\*.csv matches more than one table: .*test.csv, .*train.csv. Name one"):
        csv(tmp_path, train_csv="*.csv")


def test_images_in_both_tables_and_labels_of_the_test_table_alone_are_named(tmp_path: Path) -> None:
    make_emergency(tmp_path, images=4)
    write_labels(tmp_path, ("0.jpg", "a"), ("1.jpg", "b"))
    write_labels(tmp_path, ("./1.jpg", "b"), file="test.csv")
    with pytest.raises(DataError, match="1 images are both in .*train.csv and in .*test.csv, such as 1.jpg"):
        csv(tmp_path, test_csv="test.csv")
    write_labels(tmp_path, ("2.jpg", "c"), file="test.csv")
    with pytest.raises(DataError, match="test.csv, line 2: the label of 2.jpg is c, which is none of the classes a, b"):
        csv(tmp_path, test_csv="test.csv")


def test_names_of_classes_that_do_not_fit_the_table(tmp_path: Path) -> None:
    make_emergency(tmp_path, images=4)
    for classes, message in (
        ({"0": "a", "2": "b"}, "line 3: the label of 1.jpg is 1, which is none of the classes 0, 2"),
        ({"0": "a", "1": "b", "2": "c"}, "has no image with the label 2, which data.classes names"),
        ({"0": "a", "1": "a"}, "one name to several labels: a, a"),
    ):
        with pytest.raises(DataError, match=message):
            csv(tmp_path, image_column="image_names", label_column="emergency_or_not", classes=classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image,label\n0.jpg,Bär\n".encode("cp1252"),
            "train.csv cannot be read as a table .* Save it as a csv in UTF-8",
        ),
        (b"image,label\n0.jpg,a\n\n\n1.jpg,\n", "line 5: the label of 1.jpg is empty"),  # as an editor counts lines
    ],
)
def test_tables_of_other_encodings_and_with_empty_lines(content: bytes, message: str, tmp_path: Path) -> None:
    make_emergency(tmp_path, images=4)
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        csv(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("delimiter", "name"), [(",", None), (";", "semicolons"), ("\t", "tabs")])
def test_tables_as_spreadsheets_write_them(delimiter: str, name: str | None, encoding: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", ("a", "b"), images=2)
    header = delimiter.join(("weight", "image", "label", "note"))
    rows = [delimiter.join(('"1,5"', f"{label}/{i}.jpg", f"é{label}", '"x; y, z"')) for label in "ab" for i in (0, 1)]
    path = tmp_path / "train.csv"
    path.write_bytes("\r\n".join([header, *rows, ""]).encode(encoding))
    source = csv(tmp_path)
    assert source.class_names == ("éa", "éb")
    assert [Path(image).parent.name for image in source.splits["train"].images] == ["a", "a", "b", "b"]
    unusual = [format for format in (name, "UTF-16" if encoding == "utf-16" else None) if format]
    assert source.notes == ([f"{path} is read as a table with {' and in '.join(unusual)}"] if unusual else [])


def test_commas_in_another_column_do_not_decide_the_delimiter(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", ("a", "b"), images=1)
    (tmp_path / "train.csv").write_text("image;label;height, width, depth\na/0.jpg;a;1, 2, 3\nb/0.jpg;b;1, 2, 3\n")
    assert csv(tmp_path).class_names == ("a", "b")


def test_tables_that_are_no_regular_files(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", ("a", "b"), images=1)
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv cannot be read as a table \(a pipe, not a regular file\)"):
        csv(tmp_path)
    (tmp_path / "train.csv").unlink()
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    write_labels(tmp_path, ("a/0.jpg", "a"), ("pipe.jpg", "b"))
    with pytest.raises(DataError, match=r"train.csv names .*images/pipe.jpg, which is not a regular file."):
        csv(tmp_path)


def test_names_with_dots_that_stay_inside(tmp_path: Path) -> None:
    names = ("..foo.jpg", "...b.jpg", "a/..b.jpg", "a/../c.jpg")
    for name in names:
        photo(tmp_path / "images" / name, 0)
    write_labels(tmp_path, *((name, index % 2) for index, name in enumerate(names)))
    assert len(csv(tmp_path).splits["train"]) == 4
    for name in ("../images/a/..b.jpg", "a/../../images/c.jpg", "..", "/etc/passwd"):
        with pytest.raises(DataError, match="does not stay inside"):
            path_inside(tmp_path / "images", name, "here")


# --- public data sets ----------------------------------------------------------------------------------------


def test_stl10_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_stl10(tmp_path)
    # Generated binaries have other checksums than the real ones.
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    source = open_source("stl10", root=tmp_path)
    for split in ("train", "test"):
        expected = datasets.STL10(str(tmp_path), split)
        dataset = ImageDataset(source.splits[split], np.asarray)
        assert len(dataset) == len(expected)
        for index in range(0, len(expected), 7):
            image, label = expected[index]
            np.testing.assert_array_equal(dataset[index][0], np.asarray(image))
            assert dataset[index][1] == label
    assert source.class_names == tuple(expected.classes)


def test_pets_are_what_torchvision_reads(tmp_path: Path) -> None:
    make_pets(tmp_path)
    source = open_source("pets", root=tmp_path)
    for split, official in (("train", "trainval"), ("test", "test")):
        expected = datasets.OxfordIIITPet(str(tmp_path), official)
        assert source.class_names == tuple(expected.classes)
        assert [str(p) for p in expected._images] == source.splits[split].images
        assert expected._labels == source.splits[split].labels.tolist()


def test_caltech101_leaves_the_background_out(tmp_path: Path) -> None:
    make_caltech101(tmp_path)
    source = open_source("caltech101", root=tmp_path)
    assert source.class_names == tuple(datasets.Caltech101(str(tmp_path)).categories)
    assert len(source.splits["train"]) == 24


@pytest.mark.parametrize(
    ("name", "archive"),
    [("stl10", "stl10_binary.tar.gz"), ("pets", "images.tar.gz"), ("caltech101", "101_ObjectCategories.tar.gz")],
)
@pytest.mark.usefixtures("offline")
def test_a_data_set_that_is_not_there_says_where_to_put_it(name: str, archive: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"is missing. Add data.download=true to fetch it, or put {archive}"):
        open_source(name, root=tmp_path)
    with pytest.raises(DataError, match=rf"could not be downloaded .* Without a network, put {archive}"):
        open_source(name, root=tmp_path, download=True)


def test_damaged_data_sets_are_named_before_training(tmp_path: Path) -> None:
    make_stl10(tmp_path)
    binary = tmp_path / "stl10_binary" / "test_X.bin"
    binary.write_bytes(binary.read_bytes()[:-1])
    with pytest.raises(DataError, match="test_X.bin does not hold the 20 images that test_y.bin has labels for"):
        open_source("stl10", root=tmp_path)
    binary.unlink()
    with pytest.raises(DataError, match="test_X.bin: missing. Unpack"):
        open_source("stl10", root=tmp_path)
    make_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "Abyssinian_1.jpg").unlink()
    with pytest.raises(DataError, match=r"trainval.txt names .*Abyssinian_1.jpg, which does not exist \(1 missing"):
        open_source("pets", root=tmp_path)


# --- data sets of dependencies -------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    source = open_source("digits")
    samples = source.splits["train"]
    assert (samples.images.shape, samples.images.max()) == ((1797, 8, 8, 3), 255)
    assert source.class_names == tuple("0123456789")


def test_glyphs_are_the_same_for_the_same_seed() -> None:
    first, again, other = (open_source("glyphs", per_class=4, size=32, seed=seed) for seed in (0, 0, 1))
    assert first.splits["train"].images.shape == (4 * len(first.class_names), 32, 32, 3)
    np.testing.assert_array_equal(first.splits["train"].images, again.splits["train"].images)
    assert not np.array_equal(first.splits["train"].images, other.splits["train"].images)
    assert np.bincount(first.splits["train"].labels).tolist() == [4] * len(first.class_names)
