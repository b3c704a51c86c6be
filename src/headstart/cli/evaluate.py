"""`headstart evaluate`: a trained model's figures on labelled images, its own test split or any others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headstart.utils.console import printable, say


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("evaluate", help="figures on labelled images", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument(
        "several",
        metavar="DATA",
        nargs="*",
        help="a folder with a folder for each class, or words as for train.py: data=stl10 data.root=FOLDER "
        "trainer=gpu; without any, the data that the run was trained on",
    )
    parser.add_argument("--split", choices=("test", "val", "train"), help="(the first of these that there is)")
    parser.add_argument("--tta", choices=("flip", "five"), help="average over several views of each image")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where metrics.json, predictions.csv, classes.csv go"
    )
    parser.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Args:
        words: the parsed arguments.
    """
    from headstart.inference.evaluate import evaluate  # imported here, as it imports Lightning and Hydra
    from headstart.utils.tables import show_metrics

    if words.out:
        words.out.mkdir(parents=True, exist_ok=True)  # fails before the evaluation, not after it
    found = evaluate(words.model, *words.several, split=words.split, tta=words.tta)
    for note in found.notes:
        say(note)
    show_metrics(found.metrics)
    out = words.out or (found.run_folder or Path()) / "evaluation" / found.name
    found.save(out)
    print(printable(f"evaluation: {out}"))
    return 0
