"""Text for a terminal or a log, where names of files and classes must not be obeyed."""

from __future__ import annotations

import logging
import sys

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


class Formatter(logging.Formatter):
    """Formats records of a log, with nothing in them that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return printable(super().format(record))


class LogFile(logging.FileHandler):
    """A log in a file; where that cannot be written, as on a full disk, the terminal has the same lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """Says nothing of a disk: what the run itself cannot write ends it with a message."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
