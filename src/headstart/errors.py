"""The errors that a user can mend: one message that names the thing, what was expected and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from types import TracebackType


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


class ProcessError(HeadstartError):
    """One of several processes that train together was lost."""


def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A `sys.excepthook` that prints a user's error as its message and leaves every other as it is."""
    if isinstance(error, HeadstartError):
        print(f"headstart: {error}", file=sys.stderr)
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
