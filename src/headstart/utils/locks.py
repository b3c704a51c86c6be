"""Locks between processes on single bytes of a file, which the system frees when their process dies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without locks two processes may compute the same, and none of it is wrong
    fcntl = None  # type: ignore[assignment]


class ByteLocks:
    """Locks on the bytes of one file, up to 2**62. A process never waits for its own.

    Args:
        path: the lock file; made if it is not there, in a folder that is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, byte: int) -> bool:
        """Takes the byte for this process alone, unless another one has it."""
        return self._lock(byte, "LOCK_EX")

    def share(self, byte: int) -> bool:
        """Takes the byte together with others that share it, unless one has it alone."""
        return self._lock(byte, "LOCK_SH")

    def give_back(self, byte: int) -> None:
        """Frees the byte."""
        if fcntl is not None:
            with suppress(OSError):  # no locks here at all: see `_lock`
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def is_current(self) -> bool:
        """Whether the file is still at its path: what is locked in a file that was removed is locked from nobody."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Frees all bytes."""
        os.close(self._file)

    def _lock(self, byte: int, kind: str) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, getattr(fcntl, kind) | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a network file system without locks: as on Windows
        return True
