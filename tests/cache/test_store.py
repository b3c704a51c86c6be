"""The feature cache on disk: appended, read back, checked, shared, bounded."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headstart.cache import disk as cache
from headstart.cache.disk import cached_sets, clear, make_room
from headstart.cache.extraction import ViewDataset, Views, extract
from headstart.cache.fingerprints import file_digests
from headstart.cache.store import FeatureStore
from headstart.data.dataset import Samples
from headstart.utils.errors import DataError
from tests.helpers.commands import kill, script
from tests.helpers.disk import limited
from tests.helpers.store import ABOUT, WIDTH, fill, key, opened, row


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- a set ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), max_size=6),
    st.lists(st.integers(0, 30), max_size=20),
)
def test_what_was_appended_by_any_process_is_read_back_in_any_order(
    writes: list[list[int]], requested: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        for numbers in writes:  # each opening is a process of its own
            with opened(Path(name)) as store:
                new = [n for n in numbers if key(n) not in store]
                if new:
                    store.append([key(n) for n in new], np.stack([row(n) for n in new]))
        there = {n for numbers in writes for n in numbers}
        with opened(Path(name)) as store:
            assert set(store.missing(key(n) for n in requested)) == {key(n) for n in requested if n not in there}
            cached = [n for n in requested if n in there]
            if cached:
                rows = store.rows([key(n) for n in cached])
                backwards = np.arange(len(cached))[::-1]
                assert np.array_equal(rows.take(backwards), np.stack([row(n) for n in cached])[::-1])


def test_views_of_an_image_are_rows_of_their_own(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append([key(1, 0), key(1, 3)], np.stack([row(10), row(13)]))
        assert store.missing([key(1, view) for view in range(4)]) == [key(1, 1), key(1, 2)]
        assert np.array_equal(store.rows([key(1, 3)]).take(np.array([0]))[0], row(13))


def test_rows_that_others_append_are_seen_while_the_set_is_open(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(tmp_path, range(3))
        assert store.missing([key(2), key(3)]) == [key(3)]
        fill(tmp_path, range(3, 5))
        assert store.missing([key(2), key(3)]) == []


@pytest.mark.parametrize("where", ["first row", "last row", "key", "checksum"])
def test_a_damaged_row_is_missing_and_the_others_are_served(where: str, tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    (records,) = tmp_path.glob("*.keys")
    rows = records.with_suffix(".rows")
    position = {"first row": 3, "last row": rows.stat().st_size - 1, "key": 2 * 40 + 5, "checksum": 2 * 40 + 37}[where]
    lost = {"first row": 0, "last row": 4}.get(where, 2)
    damage(rows if "row" in where else records, position)
    with opened(tmp_path) as store:
        assert store.missing([key(n) for n in range(5)]) == [key(lost)]
        store.append([key(lost)], row(lost)[None])
    with opened(tmp_path) as store:
        assert store.missing([key(n) for n in range(5)]) == []
        assert np.array_equal(store.rows([key(lost)]).take(np.array([0]))[0], row(lost))


@pytest.mark.parametrize(
    ("suffix", "bytes_left", "good"), [(".rows", 3 * 28 + 5, 3), (".keys", 2 * 40 + 39, 2), (".rows", 0, 0)]
)
def test_what_a_killed_process_left_half_written_is_ignored(
    suffix: str, bytes_left: int, good: int, tmp_path: Path
) -> None:
    fill(tmp_path, range(5))
    (path,) = tmp_path.glob(f"*{suffix}")
    os.truncate(path, bytes_left)
    with opened(tmp_path) as store:
        assert store.missing([key(n) for n in range(5)]) == [key(n) for n in range(good, 5)]


def test_mapped_rows_of_many_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.cache.segments.MAPPED_BYTES", 1)  # lets go after every read
    for start in range(0, 50, 10):
        fill(tmp_path, range(start, start + 10))
    with opened(tmp_path) as store:
        rows = store.rows([key(n) for n in range(50)])
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(rows.take(order), np.stack([row(n) for n in order]))


def test_more_segments_than_files_may_be_open(tmp_path: Path) -> None:
    for number in range(150):
        fill(tmp_path, range(number, number + 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        with opened(tmp_path) as store:
            assert store.missing([key(n) for n in range(150)]) == []
            rows = store.rows([key(n) for n in range(150)])
        assert np.array_equal(rows.take(np.arange(150)), np.stack([row(n) for n in range(150)]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match="Make room, lower features.max_gb or data.cache_gb, or name another folder by the environment"
    ):
        FeatureStore(tmp_path / "file" / "set", WIDTH, "float32", ABOUT)


@pytest.mark.parametrize("room", [70, 0])
def test_a_full_disk_keeps_what_was_written(room: int, tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    with opened(tmp_path) as store:
        with (
            limited(room),
            pytest.raises(DataError, match="kept. Make room, lower features.max_gb or data.cache_gb, or name"),
        ):
            store.append([key(n) for n in range(3, 9)], np.stack([row(n) for n in range(3, 9)]))
        assert store.missing([key(n) for n in range(9)]) == [key(n) for n in range(3, 9)]
        store.append([key(5)], row(5)[None])  # room was made
    with opened(tmp_path) as store:
        assert store.missing([key(n) for n in range(6)]) == [key(3), key(4)]
        assert np.array_equal(store.rows([key(5)]).take(np.array([0]))[0], row(5))


# --- several processes ---------------------------------------------------------------------------------------


OTHER = """
import sys
import numpy as np
from pathlib import Path
from headstart.cache.store import FeatureStore
from tests.helpers.store import key
store, one = FeatureStore(Path(sys.argv[1]), 7, "float32", {}), key(1)
print(store.claim(one), flush=True)
if sys.stdin.readline():  # not if it is about to be killed
    store.append([one], np.full((1, 7), 5, dtype="float32"))
    store.release([one])
"""


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the set open and has tried to claim key 1; given a line, it writes that row and ends."""
    process = script(OTHER, folder)
    assert process.stdout is not None
    process.answer = process.stdout.readline().strip()  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        kill(process)


def test_a_claim_holds_until_it_is_released_or_its_process_dies(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with other_process(tmp_path) as other:
            assert other.answer == "True"  # type: ignore[attr-defined]
            assert not store.claim(key(1))
            assert store.claim(key(2))
        assert store.claim(key(1))  # killed
        with other_process(tmp_path) as other:
            assert other.answer == "False"  # type: ignore[attr-defined]
        store.release([key(1)])
        with other_process(tmp_path) as other:
            assert other.answer == "True"  # type: ignore[attr-defined]


Computed = np.ndarray[Any, Any]


def extracted(store: FeatureStore, compute: Callable[[Tensor, Sequence[str]], Computed], batch_size: int) -> int:
    """How many rows of keys 0 to 2, those of the images a, b and c, this process computes."""
    splits = {"train": Samples(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int64), list("abc"))}
    return extract(
        store,
        ViewDataset(splits, lambda _: torch.zeros(1)),
        [Views("train", index, key(index)[:32], (0,)) for index in range(3)],
        compute,
        batch_size=batch_size,
        device=None,
        num_workers=0,
        advance=lambda _: None,
    )


def test_what_is_being_computed_is_claimed_until_it_is_written(tmp_path: Path) -> None:
    """Nobody else begins with it, however long it takes."""
    answers = []

    def compute(views: Tensor, names: Sequence[str]) -> Computed:
        with other_process(tmp_path) as other:
            answers.append((list(names), other.answer))  # type: ignore[attr-defined]
        return np.ones((len(views), WIDTH), dtype=np.float32)

    with opened(tmp_path) as store:
        assert extracted(store, compute, batch_size=3) == 3
        assert answers == [(["a", "b", "c"], "False")]
        with other_process(tmp_path) as other:
            assert other.answer == "True"  # type: ignore[attr-defined]
        assert store.missing([key(1)]) == []


def test_what_another_process_is_computing_is_left_to_it(tmp_path: Path) -> None:
    """They share the work: each computes what it has claimed, and waits for the rest."""
    computed: list[str] = []

    def compute(views: Tensor, names: Sequence[str]) -> Computed:
        computed.extend(names)
        if "c" in names:
            other.communicate("go on\n")
        return np.ones((len(views), WIDTH), dtype=np.float32)

    with other_process(tmp_path) as other, opened(tmp_path) as store:
        assert other.answer == "True"  # type: ignore[attr-defined]
        assert (extracted(store, compute, batch_size=1), computed, other.returncode) == (2, ["a", "c"], 0)
        assert store.rows([key(0), key(1), key(2)]).take(np.arange(3))[:, 0].tolist() == [1, 5, 1]


# --- the cache folder ----------------------------------------------------------------------------------------


def three_sets(folder: Path) -> list[Path]:
    """Three sets of ten rows each, the first one used longest ago."""
    sets = [folder / "features" / name for name in ("a" * 32, "b" * 32, "c" * 32)]
    for age, path in enumerate(sets):
        fill(path, range(10))
        for records in path.glob("*.keys"):
            os.utime(records, (1000 + age, 1000 + age))
    return sets


SET_BYTES = 10 * (4 * WIDTH + 40)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    oldest, middle, newest = three_sets(tmp_path)
    make_room(tmp_path, 0, 3 * SET_BYTES)
    assert [cached.folder for cached in cached_sets(tmp_path)] == [newest, middle, oldest]
    make_room(tmp_path, 1, 3 * SET_BYTES)
    assert [cached.folder for cached in cached_sets(tmp_path)] == [newest, middle]
    with opened(middle) as store:
        store.rows([key(3)])  # used again
    make_room(tmp_path, 1, 2 * SET_BYTES)
    assert [cached.folder for cached in cached_sets(tmp_path)] == [middle]


def test_what_is_needed_or_in_use_stays(tmp_path: Path) -> None:
    oldest, middle, _ = three_sets(tmp_path)
    with other_process(oldest):
        make_room(tmp_path, 0, 0, preserved=set(middle.glob("*.keys")))
        assert {cached.folder for cached in cached_sets(tmp_path)} == {oldest, middle}
        assert clear(tmp_path) == (SET_BYTES, 1)
    assert clear(tmp_path) == (SET_BYTES, 0)
    assert cached_sets(tmp_path) == []


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    thesis = tmp_path / "features" / "thesis" / "weights.pth"
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    (found, *_) = three_sets(tmp_path)
    (found / "notes.txt").touch()
    clear(tmp_path)
    assert thesis.exists()
    assert (found / "notes.txt").exists()
    assert not list(found.glob("*.keys"))


def test_a_set_that_is_dropped_is_made_again(tmp_path: Path) -> None:
    (folder, *_) = three_sets(tmp_path)
    clear(tmp_path)
    fill(folder, range(2))
    (found,) = cached_sets(tmp_path)
    assert (found.rows, found.description) == (2, ABOUT)


def test_a_cache_that_cannot_be_written_to_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        folder = cache.writable_cache_folder()
    assert folder.is_dir()
    assert "features cannot be kept there" in caplog.text
    assert "Name another folder by the environment variable HEADSTART_CACHE." in caplog.text


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART_CACHE")
    assert cache.cache_folder() == Path("~/.cache/headstart").expanduser()
    monkeypatch.setenv("HEADSTART_CACHE", "~/elsewhere")
    assert cache.cache_folder() == Path("~/elsewhere").expanduser()


# --- digests of files ----------------------------------------------------------------------------------------


def digest(path: Path) -> bytes:
    return file_digests([str(path)], path.with_name("digests.sqlite"), print)[0]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A file with a text."""
    (tmp_path / "image").write_bytes(b"one")
    return tmp_path / "image"


def test_a_file_is_read_again_when_it_may_have_changed(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.cache.fingerprints.SETTLED_NS", 0)
    times = one.stat()
    assert digest(one) == hashlib.sha256(b"one").digest()
    one.write_bytes(b"two")
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    assert digest(one) == hashlib.sha256(b"two").digest()


def test_a_file_that_did_not_change_is_not_read_again(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.cache.fingerprints.SETTLED_NS", 0)
    first = digest(one)
    monkeypatch.setattr("headstart.cache.fingerprints.file_sha256", None)
    assert digest(one) == first


def test_a_file_that_has_just_changed_is_not_remembered(one: Path) -> None:
    digest(one)
    os.utime(one, ns=(0, 0))
    one.write_bytes(b"two")
    assert digest(one) == hashlib.sha256(b"two").digest()


def test_a_damaged_table_of_digests_costs_a_reading(one: Path) -> None:
    one.with_name("digests.sqlite").write_bytes(b"no database" * 1000)
    assert digest(one) == hashlib.sha256(b"one").digest()
    assert digest(one) == hashlib.sha256(b"one").digest()
