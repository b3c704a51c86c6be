"""Facts of images: read from any file, remembered by content, as columns."""

from __future__ import annotations

import io
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headstart.cache.disk import DIGESTS, FACTS, cached_sets, clear
from headstart.cache.fingerprints import file_digests
from headstart.checks.facts import BATCH, Facts, read_facts
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.image_io import decode_image
from headstart.utils.errors import DataError
from tests.helpers.checked import facts_of, image_table, scene, scenes, train_table
from tests.helpers.images import make_bad_files, make_odd_images


def remembered(cache: Path) -> dict[str, int]:
    return {str(cached.description["facts"]): cached.rows for cached in cached_sets(cache, FACTS)}


def same(left: Facts, right: Facts) -> bool:
    assert left.pixels is not None
    assert right.pixels is not None
    headers = left.header.tobytes() == right.header.tobytes()  # NaN is NaN
    return headers and left.pixels.tobytes() == right.pixels.tobytes() and left.error == right.error


def test_every_kind_of_image_has_facts(tmp_path: Path) -> None:
    files = make_odd_images(tmp_path / "images")
    facts = facts_of(train_table(tmp_path / "images", list(files)), tmp_path)
    assert set(facts.error) == {""}
    found = dict(zip(files, facts.header, strict=True))
    assert (found["grey.png"]["width"], found["grey.png"]["height"]) == (60, 44)
    assert found["grey.png"]["mode"] == b"L"
    assert found["deep.png"]["mode"] == b"I;16"
    assert found["called a photo.jpg"]["format"] == b"GIF"
    assert (found["turned.jpg"]["orientation"], found["turned.jpg"]["exif_tags"]) == (6, 1)
    assert found["cmyk.jpg"]["bytes"] == files["cmyk.jpg"].stat().st_size


@pytest.mark.parametrize("decode", [False, True])
def test_what_cannot_be_read_says_why(tmp_path: Path, decode: bool) -> None:
    expected = make_bad_files(tmp_path / "images")
    expected |= {"empty.jpg": "the file is empty", "gone.jpg": "No such file or directory"}
    table = train_table(tmp_path / "images", list(expected))
    facts = facts_of(table, tmp_path, decode=decode)
    for name, error in zip(expected, facts.error, strict=True):
        assert error
        assert error.startswith(expected[name].removeprefix("not an image that can be read (").rstrip(")")), name
        assert str(tmp_path) not in error
    assert not facts.header["bytes"].any()
    assert np.isnan(facts.columns()[1]).all()
    assert sum(remembered(tmp_path).values()) == 0


@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]), decode=st.booleans())
def test_a_file_that_is_cut_off_is_found_wherever_it_is_cut(
    data: st.DataObject, kind: str, decode: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, whole = tmp_path_factory.getbasetemp() / "cut", io.BytesIO()
    folder.mkdir(exist_ok=True)
    scene(0, (48, 40)).save(whole, format=kind)
    cut = whole.getvalue()[: data.draw(st.integers(1, len(whole.getvalue())))]
    (folder / "image").write_bytes(cut)
    try:
        decode_image(cut, "image")
        readable = True
    except DataError:
        readable = False
    facts = facts_of(train_table(folder, ["image"]), folder, decode=decode)
    assert (facts.error == [""]) == readable


def test_bytes_after_the_end_of_an_image_do_no_harm(tmp_path: Path) -> None:
    scenes(tmp_path, 1)
    with (tmp_path / "0.jpg").open("ab") as file:
        file.write(bytes(5000))
    assert facts_of(train_table(tmp_path, ["0.jpg"]), tmp_path, decode=False).error == [""]


def test_facts_are_remembered_by_content(tmp_path: Path) -> None:
    names = scenes(tmp_path, 5)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "4.jpg").read_bytes())
    table = train_table(tmp_path, [*names, "copy.jpg"])
    first = facts_of(table, tmp_path / "cache")
    assert remembered(tmp_path / "cache") == {"headers": 5, "pixels": 5}  # equal files are read once
    assert first.header["bytes"][5] == first.header["bytes"][4] > 0

    assert same(facts_of(table, tmp_path / "cache"), first)
    for name in names[:3]:
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    moved = train_table(tmp_path, [*(f"moved {name}" for name in names[:3]), *names[3:], "copy.jpg"])
    assert same(facts_of(moved, tmp_path / "cache"), first)
    assert remembered(tmp_path / "cache") == {"headers": 5, "pixels": 5}

    scene(9).save(tmp_path / "4.jpg")
    changed = facts_of(train_table(tmp_path, names[3:]), tmp_path / "cache")
    assert changed.digest[1] != first.digest[4]
    assert remembered(tmp_path / "cache") == {"headers": 6, "pixels": 6}
    clear(tmp_path / "cache")
    assert remembered(tmp_path / "cache") == {}


def test_headers_are_read_alone_and_pixels_added_later(tmp_path: Path) -> None:
    table = train_table(tmp_path, scenes(tmp_path, 3))
    headers = facts_of(table, tmp_path, decode=False)
    assert headers.pixels is None
    assert remembered(tmp_path) == {"headers": 3}
    both = facts_of(table, tmp_path)
    assert both.header.tobytes() == headers.header.tobytes()
    assert remembered(tmp_path) == {"headers": 3, "pixels": 3}


def test_a_mended_file_is_read_again(tmp_path: Path) -> None:
    scenes(tmp_path, 1)
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(whole[:500])
    table = train_table(tmp_path, ["0.jpg"])
    assert facts_of(table, tmp_path).error != [""]
    (tmp_path / "0.jpg").write_bytes(whole)
    assert facts_of(table, tmp_path).error == [""]


def test_a_stale_digest_is_said_once(tmp_path: Path) -> None:
    """A file may change without a new time stamp, such as on a network drive."""
    names = scenes(tmp_path, 2)
    for name in names:
        os.utime(tmp_path / name, (1, 1))
    time.sleep(2.1)  # until then, digests of files that have just been written are not remembered
    file_digests([str(tmp_path / "0.jpg")], tmp_path / DIGESTS, lambda _: None)
    with closing(sqlite3.connect(tmp_path / DIGESTS)) as connection, connection:
        assert connection.execute("UPDATE files SET digest = ?", (bytes(32),)).rowcount == 1
    table = train_table(tmp_path, names)
    assert facts_of(table, tmp_path).error == ["the file changes while it is read", ""]
    assert facts_of(table, tmp_path).error == ["", ""]


def test_facts_are_evicted_beyond_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = scenes(tmp_path, 4)
    facts_of(train_table(tmp_path, names[:2]), tmp_path)
    size = sum(cached.size for cached in cached_sets(tmp_path, FACTS))
    monkeypatch.setattr("headstart.checks.facts.LIMIT", size)
    facts_of(train_table(tmp_path, names[2:]), tmp_path)
    assert remembered(tmp_path) == {"headers": 2, "pixels": 2}


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    names = scenes(tmp_path, 3)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    table = train_table(tmp_path, [*names, "copy.jpg", "gone.jpg"])
    for _ in range(2):
        counts: list[int] = []
        read_facts(table, decode=True, folder=tmp_path, advance=counts.append)
        assert sum(counts) == 5


def test_many_images_are_read_in_processes_with_the_same_result(tmp_path: Path) -> None:
    names = scenes(tmp_path, 4 * BATCH + 1, (40, 30))
    (tmp_path / names[3]).write_bytes(b"no image")
    table = train_table(tmp_path, names)
    drawn = torch.get_rng_state()
    facts = facts_of(table, tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [index for index, error in enumerate(facts.error) if error] == [3]
    for index in (0, 3, 4 * BATCH):  # one by itself is read in this process
        alone = facts_of(train_table(tmp_path, names[index : index + 1]), tmp_path / f"cache {index}")
        assert facts.pixels is not None
        assert alone.pixels is not None
        assert alone.error == facts.error[index : index + 1]
        assert alone.header[0].tobytes() == facts.header[index].tobytes()
        assert alone.pixels[0].tobytes() == facts.pixels[index].tobytes()


def test_arrays_have_facts_as_files_have(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(scene(seed, (30, 20))) for seed in (0, 1)])
    samples = Samples(pixels, np.array([0, 1]), ["0", "1"])
    facts = facts_of(image_table(LabelledImages(("cat", "dog"), {"train": samples})), tmp_path)
    for index in (0, 1):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    files = facts_of(train_table(tmp_path, ["0.png", "1.png"]), tmp_path)
    assert facts.pixels is not None
    assert files.pixels is not None
    assert facts.pixels.tobytes() == files.pixels.tobytes()
    assert facts.header["width"].tolist() == [30, 30]
    assert facts.header["bytes"].tolist() == [1800, 1800]


def test_columns_tell_what_a_wrapper_tells(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x0132] = "Camera 5", "2000:01:11 12:00:00"
    picture = scene(0, (80, 40))
    picture.paste((200, 100, 50), (0, 0, 80, 4))
    for name, options in {
        "a12.jpg": {"quality": 40},
        "b3.jpg": {"quality": 90, "exif": exif, "progressive": True},
    }.items():
        picture.save(tmp_path / name, **options)
    picture.convert("L").save(tmp_path / "plain.png")
    (tmp_path / "bad.jpg").write_text("no image")
    facts = facts_of(train_table(tmp_path, ["a12.jpg", "b3.jpg", "plain.png", "bad.jpg"]), tmp_path)
    names, values = facts.columns()
    assert (values.dtype, values.shape) == (np.float32, (4, len(names)))
    assert 18 <= len(set(names)) == len(names)
    column = {name: values[:3, index].tolist() for index, name in enumerate(names)}
    assert np.isnan(values[3]).all()
    assert column["JPEG quality"][:2] == [40, 90]
    assert np.isnan(column["JPEG quality"][2])
    assert column["progressive JPEG"][:2] == [0, 1]
    assert column["aspect ratio"] == [2, 2, 2]
    assert column["bytes per pixel"][0] == pytest.approx((tmp_path / "a12.jpg").stat().st_size / 3200)
    assert column["date in EXIF data"][1] == 10.5
    assert column["camera"][0] == 0 < column["camera"][1]
    assert column["number of EXIF tags"][:2] == [0, 2]
    assert column["number in the file name"][:2] == [12, 3]
    assert column["length of the file name"] == [3, 2, 5]
    assert column["colour mode"][0] == column["colour mode"][1] != column["colour mode"][2]
    assert column["border red"][0] > column["border blue"][0]


def test_names_of_folders_are_no_column(tmp_path: Path) -> None:
    """They are often the classes."""
    for folder in ("class 1", "class 2 of them"):
        (tmp_path / folder).mkdir()
        scene(0, (40, 40)).save(tmp_path / folder / "x.png")
    values = facts_of(train_table(tmp_path, ["class 1/x.png", "class 2 of them/x.png"]), tmp_path).columns()[1]
    assert np.array_equal(values[0], values[1], equal_nan=True)
