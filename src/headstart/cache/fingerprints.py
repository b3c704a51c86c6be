"""SHA-256 digests of what features depend on: image content, network architecture and code, and transforms."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.data.preprocessing import PIXELS_VERSION
from headstart.utils.hashing import description_sha256, file_sha256

# If a file was modified less than this before it is read, it may change again without a new time stamp, because FAT's
# time stamps have a resolution of two seconds.
SETTLED_NS = 2 * 10**9

CHUNK = 4096  # number of files that are submitted to the threads at once
BATCH = 16  # of them, the number that a thread reads at once: handing over a single file takes longer than reading it


def array_digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Return the SHA-256 of each image's pixels and shape; the first axis is that of the images."""
    shape = repr(images.shape[1:]).encode()
    return [hashlib.sha256(shape + np.ascontiguousarray(image).data).digest() for image in images]


def file_digests(paths: Sequence[str], table: Path, advance: Callable[[int], None]) -> list[bytes]:
    """Return the SHA-256 of each file's bytes.

    A table stores the digests by path, size, modification and change times, and inode. A file is therefore read again
    only if it has changed. If the table is not usable or damaged, all files are read.

    Args:
        paths: the files. A file that cannot be read gets the digest of zero bytes; decoding it raises the error later.
        table: path of the SQLite file.
        advance: called with the number of files that were finished.

    Returns:
        A digest for each path, in order.
    """
    folder = os.fsencode(Path.cwd())
    absolute = [os.path.join(folder, os.fsencode(path)) for path in paths]  # noqa: PTH118 (faster, as is os.stat)
    stamps = {path: _stamp(path) for path in absolute}
    known = _read_table(table, stamps)
    advance(len(known))
    unknown = [path for path in stamps if path not in known]
    settled_before = time.time_ns() - SETTLED_NS
    settled = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(unknown), CHUNK):
            chunk = unknown[start : start + CHUNK]
            batches = [chunk[first : first + BATCH] for first in range(0, len(chunk), BATCH)]
            digests = chain.from_iterable(threads.map(lambda batch: [_digest(path) for path in batch], batches))
            for path, digest in zip(chunk, digests, strict=True):
                known[path] = digest
                stamp = stamps[path]
                if stamp and stamp.changed < settled_before:
                    settled.append((path, stamp.text, digest))
                advance(1)
    if settled:
        _use(table, lambda connection: connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", settled))
    return [known[path] for path in absolute]


def _digest(path: bytes) -> bytes:
    try:
        return file_sha256(os.fsdecode(path))
    except OSError:
        return hashlib.sha256().digest()


class Stamp(NamedTuple):
    """Metadata that shows whether a file has changed."""

    text: str  # size, modification time, change time and inode
    changed: int  # time of the last change, in nanoseconds since 1970


def _stamp(path: bytes) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    # Programs can set a file's modification time back, but not the change time of its inode (ctime).
    text = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return Stamp(text, max(status.st_mtime_ns, status.st_ctime_ns))


def _read_table(table: Path, stamps: Mapping[bytes, Stamp | None]) -> dict[bytes, bytes]:
    """Return the stored digests of the files whose stamps have not changed."""
    digests: dict[bytes, bytes] = {}

    def select(connection: sqlite3.Connection) -> None:
        paths = list(stamps)
        for start in range(0, len(paths), 500):
            some = paths[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = connection.execute(f"SELECT * FROM files WHERE path IN ({marks})", some)
            digests.update({path: digest for path, text, digest in rows if (s := stamps[path]) and s.text == text})

    _use(table, select)
    return digests


def _use(table: Path, query: Callable[[sqlite3.Connection], object]) -> None:
    """Call a function with a connection to the table. Ignore a locked table and delete a damaged one."""
    try:
        with closing(sqlite3.connect(table, timeout=10)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, digest BLOB) WITHOUT ROWID"
            )
            query(connection)
    except sqlite3.OperationalError:  # locked or not writable: the files are read again next time
        pass
    except sqlite3.DatabaseError:
        table.unlink(missing_ok=True)


def code_sha256(module: nn.Module) -> str:
    """Return the SHA-256, in hexadecimal, of a module's architecture and of the code that it runs.

    The digest covers the module's `repr` and the versions of the code: `PIXELS_VERSION` for headstart's own, and the
    versions of torch, torchvision, Pillow and the packages that the module's classes come from. Nobody versions the
    classes of a user's own module or notebook, so that these are covered by their source code.

    Args:
        module: a network.
    """
    kinds = {type(part) for part in module.modules()}
    packages = {"torch", "torchvision", "pillow", *map(_package, kinds)}
    versions = [f"{name} {_version(name)}" for name in sorted(packages)]
    code = [f"{kind} {_own_source(kind)}" for kind in kinds]
    return description_sha256({"module": repr(module), "code": sorted(code), "packages": versions, "v": PIXELS_VERSION})


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@functools.cache
def _version(package: str) -> str:
    """Return the version of an installed package; an empty string if its code may change without its version."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    editable = '"editable": true' in (distribution.read_text("direct_url.json") or "")
    return "" if editable else distribution.version


def _own_source(kind: type) -> str:
    """Return the SHA-256 of the source of a class and its bases, as far as no installed package versions them."""
    digest = hashlib.sha256()
    for base in kind.__mro__:
        if _package(base) not in ("builtins", "headstart") and not _version(_package(base)):
            digest.update(_source(base))
    return digest.hexdigest()


def _source(kind: type) -> bytes:
    """Return the source file's content of a class.

    A class without a source file, for example one from a notebook, is represented by its compiled methods.
    """
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        codes = [item.__code__ for item in vars(kind).values() if hasattr(item, "__code__")]
        return repr([(code.co_name, code.co_code, code.co_consts, code.co_names) for code in codes]).encode()


def fingerprint(transform: object) -> str:
    """Return the SHA-256, in hexadecimal, of a transform: its classes, all their attributes, and a user's own code."""
    return description_sha256({"transform": _describe(transform)})


def _describe(value: Any) -> Any:
    """Convert a transform to plain values; tensors are replaced by their SHA-256."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        parts = {name: item for name, item in vars(value).items() if name not in vars(nn.Module())}
        parts |= {**value._modules, **value._parameters, **value._buffers}
        return [f"{type(value).__module__}.{type(value).__qualname__}", _own_source(type(value)), _describe(parts)]
    if isinstance(value, Mapping):
        return {str(name): _describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    return repr(value)  # a function's contains its address: it matches no cached set, so rows are never stale
