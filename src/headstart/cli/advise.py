"""`headstart advise`: which pretrained backbone suits the images, measured on a sample of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.cli.dated_folder import dated_folder
from headstart.utils.console import printable

HELP = "which backbone suits the images"
WIDTH = 100  # of the tables, in characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "inputs",
        metavar="OVERRIDE",
        nargs="*",
        help="as for train.py: data=imagefolder data.root=FOLDER advise.models=resnet18,resnet50 advise.minutes=5",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the page (outputs/advise/DATE/TIME)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from headstart.config.compose import evaluation_config

    config = evaluation_config(None, arguments.inputs)  # before torch is imported, so that typos are reported at once
    from headstart.advice.candidates import find_candidates
    from headstart.advice.page import write_advice
    from headstart.advice.run import advise
    from headstart.advice.table import rows
    from headstart.utils.tables import show_rows

    candidates = find_candidates(config.advise.models, fetch=config.advise.fetch)
    advice = advise(config, candidates, overrides=arguments.inputs, shown=True)
    out = arguments.out or dated_folder("advise")
    page = write_advice(advice, config, out, arguments.inputs)
    show_rows(rows(advice), left_aligned=2, width=WIDTH)
    if advice.others:
        reasons = [[candidate.name, candidate.problem] for candidate in advice.others]
        show_rows([["not measured", "why"], *reasons], left_aligned=2, width=WIDTH)
    for line in (advice.reason, *(f"note: {note}" for note in advice.notes)):
        print(printable(line))
    print(printable(f"next: {advice.command}\nadvise: {page}"))
    return 0
