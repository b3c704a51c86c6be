"""`headstart look`: the data before training, as a web page and pictures."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from headstart.utils.console import printable


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("look", help="the data before training", description=__doc__)
    parser.add_argument(
        "several", metavar="WORD", nargs="*", help="as for train.py: data=imagefolder data.root=FOLDER augment=standard"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes (outputs/look/DATE/TIME)")
    parser.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Args:
        words: the parsed arguments.
    """
    from headstart.config.compose import evaluation_config

    config = evaluation_config(None, words.several)  # before torch is imported, so that typos are reported at once
    from headstart.report.data_preview import look

    out = words.out or Path("outputs/look") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
    print(printable(f"look: {look(config, out, words.several)}"))
    return 0
