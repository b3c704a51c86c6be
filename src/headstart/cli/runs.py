"""`headstart runs`: the settings in which runs differ and their metrics, the best run first."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from headstart.utils.files import csv_text

HELP = "runs side by side, sorted by a metric"
MIN_SETTINGS = 3  # settings shown on any terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("outputs"), help="(outputs)")
    parser.add_argument("--sort", metavar="METRIC", help="(the monitored metric of the first run)")
    parser.add_argument("--format", choices=("csv",), help="for programs; without it, a table for people")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    # Imported here, so that --help is fast.
    from headstart.runs.listing import differing, find_runs, sorted_by, table
    from headstart.utils.tables import show_rows

    runs = find_runs(arguments.folder)
    metric = arguments.sort or str(runs[0].settings["monitor"])
    rows = table(sorted_by(runs, metric), arguments.folder, metric)
    if arguments.format == "csv":
        sys.stdout.write(csv_text(rows))
    elif sys.stdout.isatty():
        from rich.console import Console

        rows, hidden = fit_columns(rows, len(differing(runs)), Console().width)
        show_rows(rows)
        if hidden:
            print(f"Not shown, as the terminal is narrow: {', '.join(hidden)}. --format csv has all columns.")
    else:
        show_rows(rows)
    return 0


def fit_columns(rows: Sequence[Sequence[str]], settings: int, width: int) -> tuple[list[list[str]], list[str]]:
    """Leave out columns of settings that do not fit, first those in which the fewest runs differ from the others.

    Args:
        rows: a header, then rows with the run, its settings and its metrics.
        settings: the number of columns with settings; at least `MIN_SETTINGS` of them remain.
        width: the width of the terminal in characters.

    Returns:
        The rows without these columns, and the names of these columns.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = {index: max(map(len, column)) + 2 for index, column in enumerate(columns)}  # two characters between cells
    rarest_last = sorted(range(1, settings + 1), key=lambda index: max(Counter(columns[index][1:]).values()))
    hidden: set[int] = set()
    while len(rarest_last) > MIN_SETTINGS and sum(widths.values()) > width:
        hidden.add(index := rarest_last.pop())
        del widths[index]
    return [[row[index] for index in widths] for row in rows], [rows[0][index] for index in sorted(hidden)]
