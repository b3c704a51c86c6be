"""Exceptions that a user can fix: one message says what is wrong, what was expected and what to do."""

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

DISK_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, file size limit


class HeadstartError(Exception):
    """An error that the user can fix; its message is shown without a traceback."""

    def __init__(self, message: str) -> None:
        # A DataLoader re-raises a worker's error in the main process as type(error)(text), where the text is the
        # worker's whole traceback. Keep only the original message, which follows the class name.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rsplit(f"{type(self).__module__}.{type(self).__name__}: ", 1)[-1].rstrip()
        super().__init__(message)


class ConfigError(HeadstartError):
    """A key or a value of the config is wrong."""


class DataError(HeadstartError):
    """Images, labels or splits are missing or not as expected."""


class ModelError(HeadstartError):
    """A network, its weights or a checkpoint is damaged or does not fit."""


class DiskError(HeadstartError):
    """There is no disk space for a file."""


class ProcessError(HeadstartError):
    """One of the processes of distributed training died."""


def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a `HeadstartError` or a full disk as one message, and any other exception with its traceback.

    This is a `sys.excepthook`.
    """
    if isinstance(error, HeadstartError):
        say(str(error))
    elif isinstance(error, OSError) and is_disk_full(error):  # from a library that writes a file
        say(disk_full_message(error.filename or "a file"))
    else:
        sys.__excepthook__(kind, error, traceback)


def format_error(error: Exception) -> str:
    """Format an error for the user: the whole message of a `HeadstartError`, or a line of at most 160 characters."""
    if isinstance(error, HeadstartError):
        return str(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return message if len(message) <= 160 else f"{message[:157]}..."


def suggestion(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is most similar to an unknown one.

    Returns:
        " Did you mean 'NAME'?", or an empty string if no name is similar.
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full or a quota or file size limit is reached."""
    return any(code in DISK_FULL_CODES for code in _codes(error))


def _codes(error: BaseException | None) -> Iterator[int | None]:
    """Yield the errno codes of an error and of the errors that caused it."""
    while error is not None:
        if isinstance(error, OSError):
            yield error.errno
        yield from map(int, re.findall(r"\(os error (\d+)\)", str(error)))  # the wording of safetensors
        error = error.__cause__ or error.__context__  # torch.save raises an error of its own instead


def disk_full_message(path: Path | str, size: int = 0) -> str:
    """Return the message for a full disk: which file, how much space it needs and how much is free.

    Args:
        path: the file.
        size: size of the file in bytes, 0 if unknown.
    """
    needed = f"it needs {_format_size(size)}, and " if size else ""
    try:
        free = f"{_format_size(shutil.disk_usage(Path(path).parent).free)} are free there"
    except OSError:
        free = "the disk is full"
    return (
        f"{path} cannot be written: {needed}{free} (or a quota or limit stops it). What was there before is "
        f"whole. Make room."
    )


def _format_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
