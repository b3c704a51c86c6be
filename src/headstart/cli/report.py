"""`headstart report`: the web page of a run, or one that compares several."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from headstart.utils.console import printable
from headstart.utils.errors import ConfigError, DataError


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("report", help="a run as a web page, or several compared", description=__doc__)
    parser.add_argument(
        "several",
        metavar="RUN",
        nargs="+",
        help="run folders, or folders of runs; with one run, also words such as data.root=FOLDER if images were moved",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where a comparison goes (outputs/comparisons/DATE/TIME)"
    )
    parser.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Args:
        words: the parsed arguments.
    """
    from headstart.report.comparison import write_comparison
    from headstart.report.run_report import report_again
    from headstart.runs.finished import read_finished

    settings = [word for word in words.several if "=" in word and not Path(word).exists()]
    folders = finished_below([Path(word) for word in words.several if word not in settings])
    if len(folders) == 1:
        if words.out:
            raise ConfigError("--out is for comparisons: the report of one run is in its own folder.")
        print(printable(f"report: {report_again(folders[0], settings)}"))
        return 0
    if settings:
        raise ConfigError(f"{' '.join(settings)}: expected run folders, or one run folder and such words.")
    if not folders:
        raise DataError(f"{' '.join(words.several)}: no run below it has ended; each has a metrics.json.")
    out = words.out or Path("outputs/comparisons") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
    print(printable(f"comparison: {write_comparison([read_finished(folder) for folder in folders], out)}"))
    return 0


def finished_below(folders: list[Path]) -> list[Path]:
    """List the run folders among the given folders, and the finished runs below the others.

    Args:
        folders: run folders, or folders that contain runs.

    Returns:
        Run folders without duplicates, in order. Folders that contain a config.yaml are taken as they are.
    """
    from headstart.runs.listing import find_runs

    found: list[Path] = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            found.append(folder)
        else:
            found += [run.folder for run in find_runs(folder) if run.metrics and (run.folder / "evaluation").is_dir()]
    return list(dict.fromkeys(found))
