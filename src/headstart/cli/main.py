"""Entry point of the `headstart` command, with one module for each subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from headstart.cli import advise, cache, check, evaluate, export, look, predict, report, runs
from headstart.utils import errors
from headstart.utils.errors import HeadstartError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `headstart` command.

    Args:
        arguments: the command-line arguments; None takes them from `sys.argv`.

    Raises:
        HeadstartError: the command failed; errors of the operating system are raised as one, too.
        SystemExit: the arguments are wrong, or the exit status is not 0.
    """
    sys.excepthook = errors.excepthook
    parser = argparse.ArgumentParser(prog="headstart", description="Tools for data, trained models and run folders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (look, check, advise, predict, evaluate, export, report, runs, cache):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest) or (rest and not hasattr(parsed, "inputs")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.inputs += rest  # argparse does not accept positional arguments after options
    try:
        status = parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, such as in `headstart predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:  # such as a folder that cannot be written to
        raise HeadstartError(f"{error.filename or ''}: {error.strerror or error}.".removeprefix(": ")) from error
    if status:
        sys.exit(status)
