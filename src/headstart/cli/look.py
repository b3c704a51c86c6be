"""`headstart look`: the data before training, as a web page and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.cli.dated_folder import dated_folder
from headstart.utils.console import printable

HELP = "the data before training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "inputs",
        metavar="OVERRIDE",
        nargs="*",
        help="as for train.py: data=imagefolder data.root=FOLDER augment=standard",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the page (outputs/look/DATE/TIME)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from headstart.config.compose import evaluation_config

    config = evaluation_config(None, arguments.inputs)  # before torch is imported, so that typos are reported at once
    from headstart.report.data_preview import look

    out = arguments.out or dated_folder("look")
    print(printable(f"look: {look(config, out, arguments.inputs)}"))
    return 0
