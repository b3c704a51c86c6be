"""What features depend on, as digests: the bytes of each image, the backbone's numbers, and the code that runs it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.utils.hashing import description_sha256, file_sha256

# A file that was changed less than this before it was read may change again without a new time stamp: FAT counts
# in steps of two seconds.
SETTLED_NS = 2 * 10**9

CHUNK = 4096  # files that are handed to the threads at once


def array_digests(images: NDArray[np.uint8]) -> list[bytes]:
    """SHA-256 of each image's pixels and shape."""
    shape = repr(images.shape[1:]).encode()
    return [hashlib.sha256(shape + np.ascontiguousarray(image).data).digest() for image in images]


def file_digests(paths: Sequence[str], table: Path, advance: Callable[[int], None]) -> list[bytes]:
    """SHA-256 of each file's bytes.

    A table remembers them by path, size, both times and inode, so that a file that was read once is not read
    again until it changes. Without the table, or with a damaged one, all are read.

    Args:
        paths: the files; those that cannot be read get the digest of nothing, and fail when they are decoded.
        table: a SQLite file.
        advance: called with the number of files that are done.

    Returns:
        A digest for each path, in order.
    """
    absolute = [os.fsencode(Path(path).absolute()) for path in paths]
    stamps = {path: _stamp(path) for path in absolute}
    known = _remembered(table, stamps)
    advance(len(known))
    unknown = [path for path in stamps if path not in known]
    settled_before = time.time_ns() - SETTLED_NS
    settled = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        chunks = (unknown[start : start + CHUNK] for start in range(0, len(unknown), CHUNK))
        for path, digest in (
            (p, d) for chunk in chunks for p, d in zip(chunk, threads.map(_digest, chunk), strict=True)
        ):
            known[path] = digest
            stamp = stamps[path]
            if stamp and stamp.changed < settled_before:
                settled.append((path, stamp.text, digest))
            advance(1)
    _remember(table, settled)
    return [known[path] for path in absolute]


def _digest(path: bytes) -> bytes:
    try:
        return file_sha256(os.fsdecode(path))
    except OSError:
        return hashlib.sha256().digest()


class Stamp(NamedTuple):
    """What tells that a file has not changed, and when it last did, in nanoseconds since 1970."""

    text: str
    changed: int


def _stamp(path: bytes) -> Stamp | None:
    try:
        status = Path(os.fsdecode(path)).stat()
    except OSError:
        return None
    # The inode's own time (ctime) cannot be set back by those who set a file's time.
    text = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return Stamp(text, max(status.st_mtime_ns, status.st_ctime_ns))


def _remembered(table: Path, stamps: Mapping[bytes, Stamp | None]) -> dict[bytes, bytes]:
    """Digests of the files whose stamps are as they were."""
    found: dict[bytes, bytes] = {}

    def look(connection: sqlite3.Connection) -> None:
        paths = list(stamps)
        for start in range(0, len(paths), 500):
            some = paths[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = connection.execute(f"SELECT * FROM files WHERE path IN ({marks})", some)
            found.update({path: digest for path, text, digest in rows if (s := stamps[path]) and s.text == text})

    _use(table, look)
    return found


def _remember(table: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        _use(table, lambda connection: connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows))


def _use(table: Path, work: Callable[[sqlite3.Connection], object]) -> None:
    """Does something with the table, as far as that is possible: without it, files are read once more."""
    try:
        with closing(sqlite3.connect(table, timeout=10)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, digest BLOB) WITHOUT ROWID"
            )
            work(connection)
    except sqlite3.OperationalError:  # locked, or nowhere to write
        pass
    except sqlite3.DatabaseError:
        table.unlink(missing_ok=True)


def code_sha256(module: nn.Module, *others: object) -> str:
    """SHA-256, in hexadecimal, of a network's architecture and of the source that computes it.

    Args:
        module: its structure, as it prints itself, and the source files of its classes count; torch's own are
            known by their version, which counts too.
        others: functions or classes that take part: the source files that define them count.
    """
    kinds = {type(part) for part in module.modules()}
    defined = {*others, *(base for kind in kinds for base in kind.__mro__)}
    files = {_source(item) for item in defined if item.__module__.partition(".")[0] not in ("torch", "builtins")}
    packages = {"torch", "torchvision", "pillow"} | {kind.__module__.partition(".")[0] for kind in kinds}
    versions = [f"{name} {_version(name)}" for name in sorted(packages)]
    digest = hashlib.sha256("\n".join((repr(module), *sorted(map(str, kinds)), *versions)).encode())
    for source in sorted(files):
        digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source(defined: Any) -> bytes:
    """The source file of a class or function; of a class without one, as in a notebook, its compiled methods."""
    try:
        return Path(inspect.getfile(defined)).read_bytes()
    except (OSError, TypeError):
        codes = [item.__code__ for item in vars(defined).values() if hasattr(item, "__code__")]
        return repr([(code.co_name, code.co_code, code.co_consts, code.co_names) for code in codes]).encode()


def fingerprint(transform: object) -> str:
    """SHA-256, in hexadecimal, of a transform: its classes and all their arguments."""
    return description_sha256({"transform": _described(transform)})


def _described(value: Any) -> Any:
    """A transform as plain values, tensors by their digest."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        parts = {name: item for name, item in vars(value).items() if name not in vars(nn.Module())}
        parts |= {**value._modules, **value._parameters, **value._buffers}
        return [f"{type(value).__module__}.{type(value).__qualname__}", _described(parts)]
    if isinstance(value, Mapping):
        return {str(name): _described(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return repr(value)  # a function's has its address: it is found again by nobody, and so never stale
