"""Cache folder for sets of features, decoded images and facts: location, contents, and LRU eviction when it is full."""

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
from typing import Any, NamedTuple

from headstart.cache.locks import ByteLocks
from headstart.cache.segments import RECORD
from headstart.cache.store import IN_USE
from headstart.models.schemas import JSON_OBJECT
from headstart.utils.files import read_json

log = logging.getLogger(__name__)
GIGABYTE = 10**9
# The kinds of sets: backbone features, decoded images, and what a check has found out about images.
FEATURES, IMAGES, FACTS = "features", "images", "facts"
KINDS = (FEATURES, IMAGES, FACTS)
DIGESTS = "digests.sqlite"  # in the cache folder: digests of files; see `fingerprints.file_digests`
SET_NAME = re.compile("[0-9a-f]{32}")  # folders with other names are not ours


def cache_folder() -> Path:
    """Return the cache folder: the environment variable HEADSTART_CACHE, or ~/.cache/headstart if it is not set."""
    named = os.environ.get("HEADSTART_CACHE") or "~/.cache/headstart"
    return Path(os.path.expanduser(named))  # noqa: PTH111 (pathlib's own fails for a user without a home)


def writable_cache_folder() -> Path:
    """Return the cache folder, or, with a warning, a temporary folder if the cache folder is not writable."""
    folder = cache_folder()
    try:
        for path in (folder, *(sets_folder(folder, kind) for kind in KINDS)):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
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


@functools.cache
def _temporary_folder() -> Path:
    """Create one folder for all runs of this process; it is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="headstart-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class CachedSegment(NamedTuple):
    """A segment of a set: rows that one process has appended."""

    records: Path  # path of the `.keys` file
    size: int  # of records and rows, in bytes
    rows: int  # number of rows
    used: float  # time of the last use, in seconds since 1970


@dataclass(frozen=True)
class CachedSet:
    """A set in the cache: features of one backbone and transform, images decoded in one way, or facts of images.

    Attributes:
        folder: the set's folder.
        description: what the rows depend on (`about.json`); empty if that file is missing or damaged.
        segments: the segments of the set.
    """

    folder: Path
    description: dict[str, Any]
    segments: tuple[CachedSegment, ...]

    @property
    def size(self) -> int:
        """Return the size on disk in bytes."""
        return sum(segment.size for segment in self.segments)

    @property
    def rows(self) -> int:
        """Return the number of rows in all segments."""
        return sum(segment.rows for segment in self.segments)

    @property
    def used(self) -> float:
        """Return the time of the last use, in seconds since 1970; 0 for a set without segments."""
        return max((segment.used for segment in self.segments), default=0.0)


def sets_folder(cache: Path, kind: str = FEATURES) -> Path:
    """Return the folder that contains the sets of one kind, each in a subfolder."""
    return cache / kind


def cached_sets(cache: Path, kind: str = FEATURES) -> list[CachedSet]:
    """Return all sets of one kind, the most recently used first."""
    folders = [path for path in sets_folder(cache, kind).glob("*") if SET_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(map(_read_set, folders), key=lambda cached: cached.used, reverse=True)


def _read_set(folder: Path) -> CachedSet:
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # ValidationError is a ValueError
        about = JSON_OBJECT.validate_python(read_json(folder / "about.json"))
    segments = []
    for records in sorted(folder.glob("*.keys")):
        with suppress(FileNotFoundError):  # evicted by another process at this moment
            status = records.stat()
            size = status.st_size + records.with_suffix(".rows").stat().st_size
            segments.append(CachedSegment(records, size, status.st_size // RECORD.itemsize, status.st_mtime))
    return CachedSet(folder, about, tuple(segments))


def make_room(cache: Path, needed: int, limit: int, preserved: Collection[Path] = (), kind: str = FEATURES) -> int:
    """Evict the least recently used segments until there is room for new rows.

    This process must not have a set open. Sets that other processes have open are not evicted.

    Args:
        cache: the cache folder.
        needed: bytes that are about to be written.
        limit: maximum size in bytes of all sets of this kind.
        preserved: paths of the records of segments that are not evicted, because this process is about to use them.
        kind: kind of the sets; sets of the other kinds have separate limits and are not evicted.

    Returns:
        The size in bytes of the remaining sets of this kind, plus `needed`. It exceeds the limit if too few segments
        could be evicted.
    """
    sets = cached_sets(cache, kind)
    total = sum(cached.size for cached in sets)
    evictable = [
        (segment, cached.folder) for cached in sets for segment in cached.segments if segment.records not in preserved
    ]
    for segment, folder in sorted(evictable, key=lambda item: item[0].used):
        if total + needed > limit and evict(folder, [segment]):
            total -= segment.size
    return total + needed


def evict(folder: Path, segments: Collection[CachedSegment]) -> bool:
    """Remove segments of a set, and the set itself if none is left, unless another process has it open.

    Returns:
        True if the segments were removed; False if the set is in use or the files cannot be deleted.
    """
    try:
        locks = ByteLocks(folder / "locks")
    except OSError:
        return not folder.exists()
    try:
        if not (locks.take(IN_USE) and locks.is_current()):
            return False
        for segment in segments:
            segment.records.unlink(missing_ok=True)  # records before rows: rows without a record are ignored
        remaining = {records.stem for records in folder.glob("*.keys")}
        for rows in folder.glob("*.rows"):
            if rows.stem not in remaining:
                rows.unlink(missing_ok=True)
        if not remaining:
            for path in (*folder.glob(".about.json.*"), folder / "about.json", folder / "locks"):
                path.unlink(missing_ok=True)
            folder.rmdir()
    except OSError:  # the files belong to another user, or the folder contains other files
        return False
    finally:
        locks.close()
    return True


def clear(cache: Path) -> tuple[int, int]:
    """Remove all sets that no process has open, and the table of file digests if no set is left.

    Returns:
        The number of bytes that the removed sets had, and the number of sets that could not be removed.
    """
    freed = in_use = 0
    for cached in [cached for kind in KINDS for cached in cached_sets(cache, kind)]:
        if evict(cached.folder, cached.segments):
            freed += cached.size
        else:
            in_use += 1
    if in_use == 0:
        with suppress(FileNotFoundError):
            (cache / DIGESTS).unlink()
    return freed, in_use
