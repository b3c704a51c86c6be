"""Escaping of text for terminals and logs, where names of files and classes may contain control characters."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial

JOINERS = "\u200c\u200d"  # invisible, but part of words in some scripts and of emoji


def say(text: str) -> None:
    """Print a message for the user on standard error."""
    print(f"headstart: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    r"""Escape control characters and other unprintable ones as Python does, except for line feeds.

    A file may be called `\x1b[2J.png`, which clears the screen.
    """
    return "\n".join(map(one_line, text.split("\n")))


def one_line(text: str) -> str:
    """Escape unprintable characters as `printable` does, and line feeds, too; for the cells of tables."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    shown = letter.isprintable() or letter in JOINERS
    return letter if shown else letter.encode("unicode_escape").decode("ascii")


def guard_logs() -> None:
    """Make the root logger's handlers escape control characters, and ignore a full disk without a traceback.

    Call it after Hydra has set the handlers up. Hydra's own logging config warns of formatters that are not in Python's
    `logging`.
    """
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, Formatter):
            handler.setFormatter(Formatter(handler.formatter or logging.Formatter()))
            handler.handleError = partial(_pass_over_full_disks, handler.handleError)  # type: ignore[method-assign]


class Formatter(logging.Formatter):
    """A logging formatter that escapes control characters in the output of another formatter.

    Args:
        other: the other formatter.
    """

    def __init__(self, other: logging.Formatter) -> None:
        super().__init__()
        self.other = other

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(self.other.format(record))


def _pass_over_full_disks(report: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    """Report a logging error, unless it is an OSError such as a full disk.

    The terminal shows the same lines, and the run ends anyway when it cannot write its own files.
    """
    if not isinstance(sys.exc_info()[1], OSError):
        report(record)
