"""`headstart runs`: the settings in which runs differ and their metrics, the best run first."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from rich.console import Console

from headstart.utils.console import printable
from headstart.utils.files import csv_text

HELP = "runs side by side, sorted by a metric"
MIN_WIDTH = 32  # of the column of settings, in characters
GAP = 3  # characters between two columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("outputs"), help="(outputs)")
    parser.add_argument("--sort", metavar="METRIC", help="(the monitored metric of the first run)")
    parser.add_argument("--format", choices=("csv",), help="for programs; without it, a table for people")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    # Imported here, so that --help is fast.
    from headstart.runs.listing import differing, find_runs, sorted_by, table, usual_metric
    from headstart.utils.tables import show_rows

    runs = find_runs(arguments.folder)
    metric = arguments.sort or usual_metric(runs)
    rows = table(sorted_by(runs, metric), arguments.folder, metric)
    if arguments.format == "csv":
        sys.stdout.write(csv_text(rows))
        return 0
    settings, console = len(differing(runs)), Console()
    is_wide = sum(max(map(len, column)) + GAP for column in zip(*rows, strict=True)) > console.width
    if settings and is_wide and sys.stdout.isatty():
        rows, common = compact_rows(rows, settings, console.width)
        show_rows(rows, left_aligned=2)
        print(printable(f"All other settings are the most common ones: {common}\n--format csv has all columns."))
    else:
        show_rows(rows)
    return 0


def compact_rows(rows: Sequence[Sequence[str]], settings: int, width: int) -> tuple[list[list[str]], str]:
    """Put the settings of each run in one column, as far as they are not the most common ones.

    Settings of a group, such as `head.hidden`, are compared with those of runs with the same choice, such as `mlp`.

    Args:
        rows: a header, then for each run its name, its settings and its metrics.
        settings: the number of columns with settings.
        width: the width of the terminal in characters; metrics that do not fit are left out, except the first.

    Returns:
        The rows, those of long settings on several lines, and the most common settings as text.
    """
    header, names = rows[0], rows[0][1 : settings + 1]
    runs = [dict(zip(header, row, strict=True)) for row in rows[1:]]

    def key(name: str, run: Mapping[str, str]) -> tuple[str, str | None]:
        group = name.partition(".")[0]
        choice = "data.source" if group == "data" else f"{group}.name"
        return name, None if name == choice else run.get(choice)

    counts: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    for run in runs:
        for name in names:
            counts[key(name, run)][run[name]] += 1
    common = {pair: counter.most_common(1)[0][0] for pair, counter in counts.items()}
    texts = [[f"{n}={run[n]}" for n in names if run[n] != common[key(n, run)]] for run in runs]

    widths = [max(map(len, column)) + GAP for column in zip(*rows, strict=True)]
    count = len(widths) - settings - 1
    while (room := width - widths[0] - GAP - sum(widths[settings + 1 :][:count])) < MIN_WIDTH and count > 1:
        count -= 1
    metrics = slice(settings + 1, settings + 1 + count)
    compact = [[header[0], "settings", *header[metrics]]]
    for row, text in zip(rows[1:], texts, strict=True):
        lines = wrap(" ".join(text), max(room, MIN_WIDTH), break_long_words=False, break_on_hyphens=False)
        first, *others = lines or [""]
        compact.append([row[0], first, *row[metrics]])
        compact += [["", line, *[""] * count] for line in others]
    return compact, " ".join(f"{name}={value}" for (name, choice), value in common.items() if choice is None and value)
