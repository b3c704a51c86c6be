"""The folder of all sets of features and images: where it is, what is in it, and what goes when it is full."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.cache.store import IN_USE, RECORD
from headstart.models.schemas import ABOUT
from headstart.utils.files import read_json
from headstart.utils.locks import ByteLocks

log = logging.getLogger(__name__)
GIGABYTE = 10**9
FEATURES, IMAGES = "features", "images"  # the kinds of sets: features of backbones, decoded images
DIGESTS = "digests.sqlite"  # in the cache folder: what is known of files; see `digests.file_digests`
SET_NAME = re.compile("[0-9a-f]{32}")  # whatever else lies there is not ours


def cache_folder() -> Path:
    """Where features and images are kept: the environment variable HEADSTART_CACHE, else ~/.cache/headstart."""
    named = os.environ.get("HEADSTART_CACHE") or "~/.cache/headstart"
    return Path(os.path.expanduser(named))  # noqa: PTH111 (pathlib's own fails for a user without a home)


def writable_cache_folder() -> Path:
    """The cache folder, or a temporary one, with a warning, if nothing can be written there."""
    folder = cache_folder()
    try:
        with tempfile.TemporaryFile(dir=_made(folder)):
            for kind in (FEATURES, IMAGES):
                with tempfile.TemporaryFile(dir=_made(sets_folder(folder, kind))):
                    pass
        return folder
    except OSError as error:
        temporary = _temporary_folder()
        log.warning(
            "%s: features cannot be kept there (%s), only for this process in %s. Name another folder by the "
            "environment variable HEADSTART_CACHE.",
            folder,
            error.strerror,
            temporary,
        )
        return temporary


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _temporary_folder() -> Path:
    """One folder for all runs of this process, gone at its end."""
    folder = tempfile.mkdtemp(prefix="headstart-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@dataclass(frozen=True)
class CachedSegment:
    """Rows that one run has computed.

    Attributes:
        records: the path of its records.
        size: bytes of records and rows.
        rows: how many there are.
        used: when it was last used, in seconds since 1970.
    """

    records: Path
    size: int
    rows: int
    used: float


@dataclass(frozen=True)
class CachedSet:
    """A set: rows of one backbone for one transform, or images decoded in one way.

    Attributes:
        folder: where it is.
        about: what it belongs to; empty if that is damaged.
        segments: its parts.
    """

    folder: Path
    about: dict[str, Any]
    segments: tuple[CachedSegment, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self.segments)

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(segment.rows for segment in self.segments)

    @property
    def used(self) -> float:
        """When it was last used, in seconds since 1970."""
        return max((segment.used for segment in self.segments), default=0.0)


def sets_folder(cache: Path, kind: str = FEATURES) -> Path:
    """The folder whose folders are the sets of one kind."""
    return cache / kind


def cached_sets(cache: Path, kind: str = FEATURES) -> list[CachedSet]:
    """All sets of one kind, the last used first."""
    folders = [path for path in sets_folder(cache, kind).glob("*") if SET_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((_read_set(folder) for folder in folders), key=lambda found: found.used, reverse=True)


def _read_set(folder: Path) -> CachedSet:
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # a ValidationError is one
        about = ABOUT.validate_python(read_json(folder / "about.json"))
    segments = []
    for records in sorted(folder.glob("*.keys")):
        with suppress(FileNotFoundError):  # dropped by another process in this moment
            status = records.stat()
            size = status.st_size + records.with_suffix(".rows").stat().st_size
            segments.append(CachedSegment(records, size, status.st_size // RECORD.itemsize, status.st_mtime))
    return CachedSet(folder, about, tuple(segments))


def make_room(cache: Path, needed: int, limit: int, keep: Collection[Path] = (), kind: str = FEATURES) -> int:
    """Drops the least recently used segments until there is room for more.

    Args:
        cache: the cache folder.
        needed: bytes that are about to be written.
        limit: bytes that the cache may have in all.
        keep: records of the segments that this process is about to use, which stay. It has no set open; what other
            processes have open stays too.
        kind: of the sets; the others are not touched, as they have a limit of their own.

    Returns:
        Bytes that the sets of this kind and what is needed have in all: more than the limit if too much of it stays.
    """
    sets = cached_sets(cache, kind)
    total = sum(found.size for found in sets)
    droppable = [(segment, found.folder) for found in sets for segment in found.segments if segment.records not in keep]
    for segment, folder in sorted(droppable, key=lambda item: item[0].used):
        if total + needed > limit and drop(folder, [segment]):
            total -= segment.size
    return total + needed


def drop(folder: Path, segments: Collection[CachedSegment]) -> bool:
    """Removes segments of a set, and the set when none is left, unless another process uses it.

    Returns:
        Whether they are gone.
    """
    try:
        locks = ByteLocks(folder / "locks")
    except OSError:
        return not folder.exists()
    try:
        if not (locks.take(IN_USE) and locks.is_current()):
            return False
        for segment in segments:
            segment.records.unlink(missing_ok=True)  # first: rows without a record are nothing
        left = {records.stem for records in folder.glob("*.keys")}
        for rows in folder.glob("*.rows"):
            if rows.stem not in left:
                rows.unlink(missing_ok=True)
        if not left:
            for path in (*folder.glob(".about.json.*"), folder / "about.json", folder / "locks"):
                path.unlink(missing_ok=True)
            folder.rmdir()
    except OSError:  # another user's, or with files that are not ours
        return False
    finally:
        locks.close()
    return True


def clear(cache: Path) -> tuple[int, int]:
    """Removes everything that no process uses.

    Returns:
        The bytes that were freed, and how many sets are in use.
    """
    freed = in_use = 0
    for found in (*cached_sets(cache, FEATURES), *cached_sets(cache, IMAGES)):
        if drop(found.folder, found.segments):
            freed += found.size
        else:
            in_use += 1
    if in_use == 0:
        with suppress(FileNotFoundError):
            (cache / DIGESTS).unlink()
    return freed, in_use
