"""An append-only key-value store of feature rows on disk, which several processes can write at the same time.

A set is a folder. Each process that computes rows appends them to two files of its own, which form a segment.
`NAME.rows` holds the rows. `NAME.keys` holds one record per row, written after the row: its key, and the CRC-32 of key
and row. If a process is killed, rows with a complete record remain valid and everything else is ignored. Nothing is
ever modified in place.
"""

from __future__ import annotations

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

from headstart.cache.locks import ByteLocks
from headstart.cache.segments import Key, Rows, Segment
from headstart.utils.errors import DataError, DiskError
from headstart.utils.files import write_json

POSITION_BITS = 40
POSITIONS = 2**POSITION_BITS - 1
IN_USE = 2**62  # whoever has the set open holds a shared lock on this byte; keys lock the bytes below it


class FeatureStore:
    """An open feature set. Supports `key in store`.

    A process may open a set only once at a time, because closing it frees all locks of the process on the set.

    Args:
        folder: the set's folder; it is created if it does not exist.
        width: number of values in a row.
        dtype: dtype of the values.
        description: what the rows depend on, saved as `about.json`.

    Raises:
        DataError: if the folder cannot be read or written.
    """

    def __init__(self, folder: Path, width: int, dtype: DTypeLike, description: Mapping[str, Any]) -> None:
        self.folder, self.dtype = folder, np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        self._segments: list[Segment] = []
        self._index: dict[Key, int] = {}  # of each row: index of its segment << POSITION_BITS | position in the segment
        self._files: list[int] = []
        try:
            self.locks = _open_locks(folder)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not (folder / "about.json").exists():
                write_json(folder / "about.json", description)
            self.refresh()
        except (OSError, DiskError) as error:
            self.locks.close()
            raise self._unusable(error) from None

    def __contains__(self, key: Key) -> bool:
        return key in self._index

    def refresh(self) -> None:
        """Read the records that other processes have appended since the last call."""
        known = {segment.records for segment in self._segments}
        added = sorted(path for path in self.folder.glob("*.keys") if path not in known)
        self._segments += [Segment(path, self.row_bytes) for path in added]
        for number, segment in enumerate(self._segments):
            before = len(segment.crcs)
            for position, record in enumerate(segment.read_on()["key"].tolist(), before):
                self._index[record] = number << POSITION_BITS | position

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return the keys, without duplicates, whose row is missing or damaged.

        Every row that exists is read and checked against its CRC-32.
        """
        self.refresh()
        requested = dict.fromkeys(keys)
        for key in sorted((key for key in requested if key in self._index), key=self._index.__getitem__):
            segment, position = self._segments[self._index[key] >> POSITION_BITS], self._index[key] & POSITIONS
            if zlib.crc32(segment.bytes_at(position), zlib.crc32(key)) != segment.crcs[position]:
                del self._index[key]
            segment.release_pages(1)
        return [key for key in requested if key not in self._index]

    def records_of(self, keys: Iterable[Key]) -> set[Path]:
        """Return the paths of the records (`.keys` files) of the segments that hold these keys.

        Raises:
            KeyError: if a key has no row.
        """
        return {self._segments[self._index[key] >> POSITION_BITS].records for key in keys}

    def rows(self, keys: Sequence[Key]) -> Rows:
        """Return the rows of these keys, in order, and mark their segments as just used.

        Raises:
            KeyError: if a key has no row.
        """
        indices = np.fromiter((self._index[key] for key in keys), dtype=np.int64)
        numbers, which = np.unique(indices >> POSITION_BITS, return_inverse=True)
        segments = [self._segments[number] for number in numbers]
        for segment in segments:
            with suppress(OSError):  # the files belong to another user
                os.utime(segment.records)
        return Rows(segments, which, indices & POSITIONS, self.dtype, self.row_bytes)

    def claim(self, key: Key) -> bool:
        """Try to lock a key that this process is about to compute.

        Returns:
            False if another process has locked the key.
        """
        return self.locks.take(_byte(key))

    def release(self, keys: Iterable[Key]) -> None:
        """Unlock keys that `claim` has locked."""
        for key in keys:
            self.locks.release(_byte(key))

    def append(self, keys: Sequence[Key], rows: NDArray[Any]) -> None:
        """Append rows to this process's segment.

        Args:
            keys: key of each row.
            rows: shape (len(keys), width); they are converted to the dtype of the set.

        Raises:
            DataError: if the rows cannot be written, for example because the disk is full. Earlier rows stay cached.
        """
        data = memoryview(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        size = self.row_bytes
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        records = b"".join(
            key + zlib.crc32(part, zlib.crc32(key)).to_bytes(4, "little") for key, part in zip(keys, parts, strict=True)
        )
        try:
            if not self._files:
                self._begin_segment()
            rows_file, records_file = self._files
            _write_whole(rows_file, data)
            _write_whole(records_file, records)
        except OSError as error:
            self._end_segment()
            raise self._unusable(error) from None

    def close(self) -> None:
        """Close the files and free the locks. `Rows` that were returned before stay readable."""
        self._end_segment()
        self.locks.close()

    def _end_segment(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def _unusable(self, error: OSError | DiskError) -> DataError:
        why = error.strerror if isinstance(error, OSError) else "the disk is full"
        return DataError(
            f"{self.folder}: cannot write to the cache ({why}). What was computed so far is kept. "
            f"Make room, lower features.max_gb or data.cache_gb, or name another folder by the environment variable "
            f"HEADSTART_CACHE; then run the same command again."
        )

    def _begin_segment(self) -> None:
        # Names sort by time, so that `refresh` prefers the newest row of a key that was computed again.
        records = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.keys"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for path in (records.with_suffix(".rows"), records):
            self._files.append(os.open(path, flags, 0o666))


def _open_locks(folder: Path) -> ByteLocks:
    """Open a set's lock file and mark the set as in use, after waiting for a process that is evicting the set."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # evicted at this moment
            locks = ByteLocks(folder / "locks")
            if locks.take(IN_USE, shared=True) and locks.is_current():
                return locks
            locks.close()
        time.sleep(0.01)


def _byte(key: Key) -> int:
    return int.from_bytes(key[:6] + key[32:34], "little") % IN_USE


def _write_whole(file: int, data: memoryview | bytes) -> None:
    """Write all of the data, or restore the file's length and raise OSError."""
    before = os.lseek(file, 0, os.SEEK_CUR)
    remaining = memoryview(data)
    try:
        while remaining:
            remaining = remaining[os.write(file, remaining) :]
    except OSError:
        os.ftruncate(file, before)
        os.lseek(file, before, os.SEEK_SET)
        raise
