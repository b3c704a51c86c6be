"""A disk without room, a memory without room, and files that this user may not read."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes: the system refuses to write there, as it does on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """This process gets at most so many bytes of address space more than it has."""
    former = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions hold, also where the tests are run by root, whom Linux lets read everything.

    Root goes on as the same user without the two capabilities that pass over permissions (capabilities(7)). Another
    user's identity would not do: folders above the test's may be closed to others.
    """
    if os.geteuid() != 0:
        yield
        return
    system = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and the same again for higher capabilities
    _call(system.capget, header, sets)
    former = sets[0]
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    _call(system.capset, header, sets)
    try:
        yield
    finally:
        sets[0] = former
        _call(system.capset, header, sets)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """A file or a folder that nobody may read."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)
