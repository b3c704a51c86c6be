"""`headstart check`: what is wrong with the images, before anybody believes a figure."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from headstart.checks.findings import KINDS, NOT_OF_IMAGES, TIERS, check_names
from headstart.cli.dated_folder import dated_folder
from headstart.utils.console import printable

HELP = "what is wrong with the images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "inputs",
        metavar="OVERRIDE",
        nargs="*",
        help="as for train.py: data=imagefolder data.root=FOLDER model=resnet34",
    )
    parser.add_argument("--tiers", metavar="TIERS", default=",".join(TIERS), help="some of %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the page (outputs/check/DATE/TIME)")
    parser.add_argument(
        "--fail-on", metavar="KINDS", default="", help="exit with status 1 if any was found: leak,unreadable"
    )
    parser.add_argument("--drop", metavar="KINDS", default="", help="leave these out of clean.csv: label,blank")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from headstart.config.compose import evaluation_config

    tiers, fail_on, drop = names(arguments.tiers), names(arguments.fail_on), names(arguments.drop)
    check_names(tiers or [""], TIERS, "--tiers")
    check_names(fail_on, KINDS, "--fail-on")
    check_names(drop, [kind for kind in KINDS if kind not in NOT_OF_IMAGES], "--drop")
    config = evaluation_config(None, arguments.inputs)  # before torch is imported, so that typos are reported at once
    from headstart.checks.run import check

    out = arguments.out or dated_folder("check")
    counts = check(config, out, tiers, drop=drop, overrides=arguments.inputs).counts
    for line in summary(counts):
        print(line)
    print(printable(f"check: {out / 'index.html'}"))
    return 1 if any(kind in counts for kind in fail_on) else 0


def names(text: str) -> list[str]:
    """Return the names that an option lists, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def summary(counts: Mapping[str, int]) -> list[str]:
    """Return a line for each kind that was found: severity, number, name, title and what to do."""
    if not counts:
        return ["nothing was found"]
    width = max(len(f"{count:,}") for count in counts.values())
    longest = max(map(len, counts))
    return [
        f"{KINDS[kind].severity:7}  {count:{width},}  {kind:{longest}}  {KINDS[kind].title}. {KINDS[kind].advice}"
        for kind, count in counts.items()
    ]
