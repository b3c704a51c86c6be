"""`headstart report`: the web page of a run, or one that compares several."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.cli.dated_folder import dated_folder
from headstart.utils.console import printable
from headstart.utils.errors import ConfigError, DataError

HELP = "a run as a web page, or several compared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "inputs",
        metavar="RUN",
        nargs="+",
        help="run folders, or folders of runs; with one run, also overrides such as data.root=FOLDER if images moved",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for a comparison (outputs/comparisons/DATE/TIME)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from headstart.report.comparison import write_comparison
    from headstart.report.run_report import report_again
    from headstart.runs.finished import read_finished

    overrides = [text for text in arguments.inputs if "=" in text and not Path(text).exists()]
    folders = finished_below([Path(text) for text in arguments.inputs if text not in overrides])
    if len(folders) == 1:
        if arguments.out:
            raise ConfigError("--out is for comparisons: the report of one run is in its own folder.")
        print(printable(f"report: {report_again(folders[0], overrides)}"))
        return 0
    if overrides:
        raise ConfigError(f"{' '.join(overrides)}: expected run folders, or one run folder and its overrides.")
    if not folders:
        raise DataError(f"{' '.join(arguments.inputs)}: no finished run below it; each has a metrics.json.")
    out = arguments.out or dated_folder("comparisons")
    print(printable(f"comparison: {write_comparison([read_finished(folder) for folder in folders], out)}"))
    return 0


def finished_below(folders: list[Path]) -> list[Path]:
    """List without duplicates the given folders that contain a config.yaml, and the finished runs below the others."""
    from headstart.runs.listing import find_runs

    finished: list[Path] = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            finished.append(folder)
        else:
            runs = find_runs(folder)
            finished += [run.folder for run in runs if run.metrics and (run.folder / "evaluation").is_dir()]
    return list(dict.fromkeys(finished))
