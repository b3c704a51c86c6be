"""`headstart runs`: what runs differ in and what came out, the best first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from headstart.utils.files import csv_text


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("runs", help="runs side by side, sorted by a metric", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("outputs"), help="(outputs)")
    parser.add_argument("--sort", metavar="METRIC", help="(what the first run monitors)")
    parser.add_argument("--format", choices=("csv",), help="for programs; without it, a table for people")
    parser.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Args:
        words: the parsed arguments.
    """
    from headstart.runs.listing import find_runs, sorted_by, table  # imported here, so that --help is fast
    from headstart.utils.tables import show_rows

    runs = find_runs(words.folder)
    metric = words.sort or str(runs[0].settings["monitor"])
    rows = table(sorted_by(runs, metric), words.folder, metric)
    if words.format == "csv":
        sys.stdout.write(csv_text(rows))
        return 0
    show_rows(rows)
    return 0
