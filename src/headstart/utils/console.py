"""Text for a terminal or a log, where names of files and classes must not be obeyed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial

JOINERS = "\u200c\u200d"  # invisible, and parts of words in some scripts and of emoji


def say(text: str) -> None:
    """Prints a line for the user on standard error."""
    print(f"headstart: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    r"""Escapes what a terminal would obey or cannot show, as Python writes it; ends of lines stay.

    A file may be called `\x1b[2J.png`, which clears the screen.
    """
    return "\n".join(map(one_line, text.split("\n")))


def one_line(text: str) -> str:
    """Likewise, and ends of lines are escaped, too: for the cells of tables."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    shown = letter.isprintable() or letter in JOINERS
    return letter if shown else letter.encode("unicode_escape").decode("ascii")


def guard_logs() -> None:
    """Has the logs that Hydra has set up hold nothing that a terminal would obey; a full disk is no traceback.

    Not by Hydra's own configuration of logs, which warns of classes that are not Python's.
    """
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, Formatter):
            handler.setFormatter(Formatter(handler.formatter or logging.Formatter()))
            handler.handleError = partial(_pass_over_full_disks, handler.handleError)  # type: ignore[method-assign]


class Formatter(logging.Formatter):
    """Formats records of a log as another one does, with nothing in them that a terminal would obey."""

    def __init__(self, other: logging.Formatter) -> None:
        super().__init__()
        self.other = other

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return printable(self.other.format(record))


def _pass_over_full_disks(report: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    """Says nothing of a disk: the terminal has the same lines, and what the run itself cannot write ends it."""
    if not isinstance(sys.exc_info()[1], OSError):
        report(record)
