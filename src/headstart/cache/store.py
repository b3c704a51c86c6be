"""One feature set on disk: rows of features by key, which several processes may append to at once.

A set is a folder. Each process that computes something appends to two files of its own, a segment: `NAME.rows`
holds the rows, and `NAME.keys` a record for each of them, written after it: its key and the CRC-32 of both. Whatever
stops a process, rows with a whole record are good and the rest is ignored; nothing is ever changed in place.
"""

from __future__ import annotations

import mmap
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headstart.utils.errors import DataError, DiskError
from headstart.utils.files import write_json
from headstart.utils.locks import ByteLocks

KEY_BYTES = 36  # the image's SHA-256 and the number of the view
RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4")])
POSITION_BITS = 40
POSITIONS = 2**POSITION_BITS - 1
IN_USE = 2**62  # this byte of the lock file is shared by all that use the set; keys have the bytes in front of it
MAPPED_BYTES = 32 * 2**20  # of mapped rows that may stay resident before they are let go of
SMALL_BYTES = 128 * 2**10  # segments up to this size are read instead, as each mapping keeps a file open

Key = bytes


def key_of(image: bytes, view: int) -> Key:
    """The key of a row: which image (its SHA-256), and which view of it."""
    return image + view.to_bytes(4, "little")


class Segment:
    """What one process has appended, as far as it has been read.

    Args:
        records: the path of the records.
        row_bytes: size of a row.
    """

    def __init__(self, records: Path, row_bytes: int) -> None:
        self.records, self.row_bytes = records, row_bytes
        self.rows = records.with_suffix(".rows")
        self.crcs = np.empty(0, dtype="<u4")
        self._map: mmap.mmap | bytes = b""
        self._touched = 0

    def read_on(self) -> NDArray[np.void]:
        """The records that have been added since the last call."""
        try:
            count = min(self.records.stat().st_size // RECORD.itemsize, self.rows.stat().st_size // self.row_bytes)
        except FileNotFoundError:  # not there yet, or dropped
            count = 0
        known = len(self.crcs)
        if count <= known:
            return np.empty(0, dtype=RECORD)
        added = np.fromfile(self.records, dtype=RECORD, count=count - known, offset=known * RECORD.itemsize)
        self.crcs = np.concatenate([self.crcs, added["crc"]])
        return added

    def bytes_at(self, position: int) -> memoryview:
        """One row, mapped."""
        start = position * self.row_bytes
        return memoryview(self._mapped())[start : start + self.row_bytes]

    def array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """All rows, mapped: shape (rows, width)."""
        return np.frombuffer(self._mapped(), dtype=dtype).reshape(len(self.crcs), -1)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the map out: a process that is not forked from this one maps the file for itself."""
        return {**self.__dict__, "_map": b""}

    def let_go(self, touched: int) -> None:
        """Counts rows that were read, and gives their memory back now and then; the file's cache keeps them."""
        self._touched += touched * max(self.row_bytes, 16 * mmap.PAGESIZE)  # Linux maps 16 pages around each fault
        if self._touched > MAPPED_BYTES and isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def _mapped(self) -> mmap.mmap | bytes:
        size = len(self.crcs) * self.row_bytes
        if len(self._map) < size:
            with self.rows.open("rb") as file:
                small = size <= SMALL_BYTES
                self._map = file.read(size) if small else mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        return self._map


class Rows:
    """Rows of one or several segments, read where they lie.

    Args:
        segments: where rows are.
        which: for each row the segment, shape (N,).
        positions: for each row its place there, shape (N,).
        dtype: of the features.
        row_bytes: size of a row.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        which: NDArray[np.int64],
        positions: NDArray[np.int64],
        dtype: np.dtype[Any],
        row_bytes: int,
    ) -> None:
        self._segments = segments
        self._arrays = [segment.array(dtype) for segment in segments]
        self._which, self._positions = which, positions
        self.dtype, self.row_bytes = dtype, row_bytes

    def __len__(self) -> int:
        return len(self._positions)

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker process: where the rows are, not the rows."""
        return Rows, (self._segments, self._which, self._positions, self.dtype, self.row_bytes)

    def row(self, index: int) -> NDArray[Any]:
        """The row at an index, mapped: shape (width,)."""
        number = self._which[index]
        self._segments[number].let_go(1)
        row: NDArray[Any] = self._arrays[number][self._positions[index]]
        return row

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these indices, copied: shape (len(indices), width)."""
        taken = np.empty((len(indices), self.row_bytes // self.dtype.itemsize), self.dtype)
        which, positions = self._which[indices], self._positions[indices]
        for number in np.unique(which):
            here = which == number
            taken[here] = self._arrays[number][positions[here]]
            self._segments[number].let_go(int(here.sum()))
        return taken


class FeatureStore:
    """A feature set that is open, once in a process: closing it frees all locks that the process has on the set.

    Args:
        folder: made if it is not there.
        width: features of a row.
        dtype: of the features.
        about: what the set belongs to, kept as `about.json`.

    Raises:
        DataError: the folder cannot be used.
    """

    def __init__(self, folder: Path, width: int, dtype: DTypeLike, about: Mapping[str, Any]) -> None:
        self.folder, self.dtype = folder, np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        self._segments: list[Segment] = []
        self._places: dict[Key, int] = {}  # the segment's number and the row's place there, as one number
        self._own: list[int] = []
        try:
            self.locks = _share(folder)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not (folder / "about.json").exists():
                write_json(folder / "about.json", about)
            self.refresh()
        except (OSError, DiskError) as error:
            self.locks.close()
            raise self._unusable(error) from None

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Takes notice of what other processes have appended."""
        known = {segment.records for segment in self._segments}
        found = sorted(path for path in self.folder.glob("*.keys") if path not in known)
        self._segments += [Segment(path, self.row_bytes) for path in found]
        for number, segment in enumerate(self._segments):
            before = len(segment.crcs)
            for position, record in enumerate(segment.read_on()["key"].tolist(), before):
                self._places[record] = number << POSITION_BITS | position

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of the keys, each once, that have no row, or a damaged one; reads all others and checks them."""
        self.refresh()
        asked = dict.fromkeys(keys)
        for key in sorted((key for key in asked if key in self._places), key=self._places.__getitem__):
            segment, position = self._segments[self._places[key] >> POSITION_BITS], self._places[key] & POSITIONS
            if zlib.crc32(segment.bytes_at(position), zlib.crc32(key)) != segment.crcs[position]:
                del self._places[key]
            segment.let_go(1)
        return [key for key in asked if key not in self._places]

    def records_of(self, keys: Iterable[Key]) -> set[Path]:
        """The records of the segments that have these keys, none of which is missing."""
        return {self._segments[self._places[key] >> POSITION_BITS].records for key in keys}

    def rows(self, keys: Sequence[Key]) -> Rows:
        """The rows of keys, none of which is missing; their segments count as used now."""
        places = np.fromiter((self._places[key] for key in keys), dtype=np.int64)
        numbers, which = np.unique(places >> POSITION_BITS, return_inverse=True)
        segments = [self._segments[number] for number in numbers]
        for segment in segments:
            with suppress(OSError):  # another user's files
                os.utime(segment.records)
        return Rows(segments, which, places & POSITIONS, self.dtype, self.row_bytes)

    def claim(self, key: Key) -> bool:
        """Reserves a key that this process is about to compute, unless another process has it."""
        return self.locks.take(_byte(key))

    def release(self, keys: Iterable[Key]) -> None:
        """Gives up what was claimed."""
        for key in keys:
            self.locks.give_back(_byte(key))

    def append(self, keys: Sequence[Key], rows: NDArray[Any]) -> None:
        """Adds rows of shape (len(keys), width).

        Raises:
            DataError: they cannot be written, as when the disk is full; all rows before them are kept.
        """
        data = memoryview(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        size = self.row_bytes
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        records = b"".join(
            key + zlib.crc32(part, zlib.crc32(key)).to_bytes(4, "little") for key, part in zip(keys, parts, strict=True)
        )
        try:
            if not self._own:
                self._begin_segment()
            rows_file, records_file = self._own
            _write_whole(rows_file, data)
            _write_whole(records_file, records)
        except OSError as error:
            self._end_segment()
            raise self._unusable(error) from None

    def close(self) -> None:
        """Ends the use of the set. Rows that were handed out stay readable."""
        self._end_segment()
        self.locks.close()

    def _end_segment(self) -> None:
        while self._own:
            os.close(self._own.pop())

    def _unusable(self, error: OSError | DiskError) -> DataError:
        why = error.strerror if isinstance(error, OSError) else "the disk is full"
        return DataError(
            f"{self.folder}: cannot write to the cache ({why}). What was computed so far is kept. "
            f"Make room, lower features.max_gb or data.cache_gb, or name another folder by the environment variable "
            f"HEADSTART_CACHE; then run the same command again."
        )

    def _begin_segment(self) -> None:
        # Names sort by time: where a row was computed again, the later one is read.
        records = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.keys"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for path in (records.with_suffix(".rows"), records):
            self._own.append(os.open(path, flags, 0o666))


def _share(folder: Path) -> ByteLocks:
    """Opens a set's lock file and marks the set as used; waits while another process drops it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # dropped in this moment
            locks = ByteLocks(folder / "locks")
            if locks.share(IN_USE) and locks.is_current():
                return locks
            locks.close()
        time.sleep(0.01)


def _byte(key: Key) -> int:
    return int.from_bytes(key[:6] + key[32:34], "little") % IN_USE


def _write_whole(file: int, data: memoryview | bytes) -> None:
    """Writes all of it, or leaves the file as it was."""
    before = os.lseek(file, 0, os.SEEK_CUR)
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        os.ftruncate(file, before)
        os.lseek(file, before, os.SEEK_SET)
        raise
