"""The errors that a user can mend: one message that names the thing, what was expected and what to do."""

from __future__ import annotations

import difflib
import errno
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from headstart.utils.console import say

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, a quota, a limit on the size of files


class HeadstartError(Exception):
    """Something that the user can mend; its message stands alone, without a traceback."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker's error is raised again in the main process as type(error)(text), the text being
        # the worker's whole traceback: keep what stands behind the class name, the message that we wrote.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rsplit(f"{type(self).__module__}.{type(self).__name__}: ", 1)[-1].rstrip()
        super().__init__(message)


class ConfigError(HeadstartError):
    """A name or a value on the control panel is wrong."""


class DataError(HeadstartError):
    """Images, labels or splits are not what was described."""


class ModelError(HeadstartError):
    """A network, its weights or a checkpoint does not fit."""


class DiskError(HeadstartError):
    """There is no room for a file."""


class ProcessError(HeadstartError):
    """One of several processes that train together was lost."""


def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A `sys.excepthook` that prints a user's error as its message and leaves every other as it is."""
    if isinstance(error, HeadstartError):
        say(str(error))
    elif isinstance(error, OSError) and has_no_room(error):  # of a library that writes a file
        say(no_room(error.filename or "a file"))
    else:
        sys.__excepthook__(kind, error, traceback)


def brief(error: Exception) -> str:
    """An error of another library in one line of at most 160 characters."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return message if len(message) <= 160 else f"{message[:157]}..."


def told(error: Exception) -> str:
    """An error in words for a user: ours says what to do, and others are cut short."""
    return str(error) if isinstance(error, HeadstartError) else brief(error)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Asks whether the nearest of the known names was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


# --- a disk that is full -------------------------------------------------------------------------------------


def has_no_room(error: BaseException) -> bool:
    """Whether a file could not be written because there is no room for it."""
    return any(code in NO_ROOM for code in _codes(error))


def _codes(error: BaseException | None) -> Iterator[int | None]:
    """The system's numbers of an error and of what led to it."""
    while error is not None:
        if isinstance(error, OSError):
            yield error.errno
        yield from map(int, re.findall(r"\(os error (\d+)\)", str(error)))  # as safetensors words it
        error = error.__cause__ or error.__context__  # torch.save hides it behind an error of its own


def no_room(path: Path | str, size: int = 0) -> str:
    """A sentence that says which file has no room, how much it needs and how much there is.

    Args:
        path: the file.
        size: bytes that it needs; 0 if that is not known.
    """
    needed = f"it needs {_rounded(size)}, and " if size else ""
    try:
        free = f"{_rounded(shutil.disk_usage(Path(path).parent).free)} are free there"
    except OSError:
        free = "the disk is full"
    return (
        f"{path} cannot be written: {needed}{free} (or a quota or limit stops it). What was there before is "
        f"whole. Make room."
    )


def _rounded(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
