"""File locks between processes on single bytes, which the system releases when a process dies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without locks, two processes may compute the same thing, which is only a waste
    fcntl = None  # type: ignore[assignment]


class ByteLocks:
    """Non-blocking locks on the bytes of one file (`fcntl.lockf`), with offsets up to 2**62.

    Locks of the same process never conflict. Where there are no locks, as on Windows, every lock is granted.

    Args:
        path: the lock file, created if it does not exist; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, byte: int, *, shared: bool = False) -> bool:
        """Try to lock a byte, exclusively or shared with other processes, without waiting.

        Returns:
            Whether this process has the lock now; False if a lock of another process excludes it.
        """
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a network file system without locks: as on Windows
        return True

    def release(self, byte: int) -> None:
        """Release the lock on a byte."""
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: see `take`
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def is_current(self) -> bool:
        """Return whether the lock file is still at its path; locks on a removed file exclude nobody."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file, which releases all locks."""
        os.close(self._file)
