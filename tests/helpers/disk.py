"""A disk without room, a memory without room, and files that this user may not read."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
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
    """Files are opened as by a usual user, also where the tests are run by root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """A file or a folder that nobody may read."""
    user, mode = os.geteuid(), path.stat().st_mode
    os.seteuid(os.getuid())  # whose file it is
    path.chmod(0)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        path.chmod(mode)
        os.seteuid(user)
