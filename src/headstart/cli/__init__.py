"""The `headstart` command: one module for each of its words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from headstart import errors
from headstart.cli import cache, evaluate, export, predict


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: its words; None takes those of the process.
    """
    sys.excepthook = errors.excepthook
    parser = argparse.ArgumentParser(prog="headstart", description="What to do with what python train.py has left.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (predict, evaluate, export, cache):
        command.add(commands)
    words = parser.parse_args(arguments)
    try:
        status = words.run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # `headstart predict ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    if status:
        sys.exit(status)
