"""`headstart evaluate`: metrics of a trained model on labelled images, its own test split or any others."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.utils.console import printable, say

HELP = "metrics on labelled images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument(
        "inputs",
        metavar="DATA",
        nargs="*",
        help="a folder with a folder for each class, or overrides as for train.py, such as data=stl10 "
        "data.root=FOLDER trainer=gpu (the data that the run was trained on)",
    )
    parser.add_argument("--split", choices=("test", "val", "train"), help="(the first of these that exists)")
    parser.add_argument("--tta", choices=("flip", "five"), help="average over several views of each image")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for metrics.json, predictions.csv and classes.csv"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from headstart.inference.evaluate import evaluate  # imported here, as it imports Lightning and Hydra
    from headstart.utils.tables import show_metrics

    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)  # fails before the evaluation, not after it
    evaluation = evaluate(arguments.model, *arguments.inputs, split=arguments.split, tta=arguments.tta)
    for note in evaluation.notes:
        say(note)
    show_metrics(evaluation.metrics)
    out = arguments.out or (evaluation.run_folder or Path()) / "evaluation" / evaluation.name
    evaluation.save(out)
    print(printable(f"evaluation: {out}"))
    return 0
