"""Segments of a feature store: the rows that one process has appended, read back through memory maps."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 36  # the SHA-256 of the image (32 bytes) and the index of the view (4 bytes)
RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4")])
MAPPED_BYTES = 32 * 2**20  # maximum size of mapped rows that stay resident before their pages are released
SMALL_BYTES = 128 * 2**10  # segments up to this size are read into memory, because each mapping keeps a file open

Key = bytes


def key_of(image: bytes, view: int) -> Key:
    """Return the key of a row: the image's SHA-256 (32 bytes), followed by the index of the view (4 bytes)."""
    return image + view.to_bytes(4, "little")


class Segment:
    """The rows that one process has appended, as far as they have been read.

    Args:
        records: path of the `.keys` file, which holds the records; the `.rows` file lies beside it.
        row_bytes: size of a row in bytes.

    Attributes:
        rows: path of the `.rows` file.
        crcs: CRC-32 of each row that has been read so far, uint32, shape (rows,).
    """

    def __init__(self, records: Path, row_bytes: int) -> None:
        self.records, self.row_bytes = records, row_bytes
        self.rows = records.with_suffix(".rows")
        self.crcs = np.empty(0, dtype="<u4")
        self._map: mmap.mmap | bytes = b""
        self._touched = 0

    def read_on(self) -> NDArray[np.void]:
        """Return the records (dtype `RECORD`) that have been added since the last call."""
        try:
            count = min(self.records.stat().st_size // RECORD.itemsize, self.rows.stat().st_size // self.row_bytes)
        except FileNotFoundError:  # not written yet, or evicted
            count = 0
        known = len(self.crcs)
        if count <= known:
            return np.empty(0, dtype=RECORD)
        added = np.fromfile(self.records, dtype=RECORD, count=count - known, offset=known * RECORD.itemsize)
        self.crcs = np.concatenate([self.crcs, added["crc"]])
        return added

    def bytes_at(self, position: int) -> memoryview:
        """Return the bytes of one row, without copying them."""
        start = position * self.row_bytes
        return memoryview(self._mapped())[start : start + self.row_bytes]

    def array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return all rows as an array of shape (rows, width), without copying them."""
        return np.frombuffer(self._mapped(), dtype=dtype).reshape(len(self.crcs), -1)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory map; a process that unpickles it maps the file again."""
        return {**self.__dict__, "_map": b""}

    def release_pages(self, touched: int) -> None:
        """Count rows that were read and, every `MAPPED_BYTES`, release their pages; the page cache keeps them.

        Args:
            touched: how many rows were read since the last call.
        """
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
    """A read-only sequence of rows from one or several memory-mapped segments.

    Args:
        segments: the segments that hold the rows.
        which: index of each row's segment, shape (N,).
        positions: index of each row in its segment, shape (N,).
        dtype: dtype of the features.
        row_bytes: size of a row in bytes.
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
        """Pickle the location of the rows instead of the rows, so that worker processes map them again."""
        return Rows, (self._segments, self._which, self._positions, self.dtype, self.row_bytes)

    def row(self, index: int) -> NDArray[Any]:
        """Return the row at an index, shape (width,), without copying it."""
        number = self._which[index]
        self._segments[number].release_pages(1)
        row: NDArray[Any] = self._arrays[number][self._positions[index]]
        return row

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of the rows at these indices, shape (len(indices), width)."""
        taken = np.empty((len(indices), self.row_bytes // self.dtype.itemsize), self.dtype)
        which, positions = self._which[indices], self._positions[indices]
        for number in np.unique(which):
            in_segment = which == number
            taken[in_segment] = self._arrays[number][positions[in_segment]]
            self._segments[number].release_pages(int(in_segment.sum()))
        return taken
