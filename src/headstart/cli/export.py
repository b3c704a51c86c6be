"""`headstart export`: a trained model for ONNX Runtime or torch.export, checked against the model itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headstart.utils.console import printable


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("export", help="write a model for other runtimes", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument("--to", choices=("onnx", "torch-export"), required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (export/ in the run folder)")
    parser.add_argument(
        "--images", nargs="+", metavar="SOURCE", help="images to compare on, as in predict; without any, generated ones"
    )
    parser.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Args:
        words: the parsed arguments.
    """
    import headstart  # imported here, as it needs torch
    from headstart.inference.export import export
    from headstart.inference.image_inputs import find_images

    model = headstart.load(words.model, "cpu")
    out = words.out or (model.run_folder or Path()) / "export"
    inputs = find_images(words.images).images if words.images else []
    for problem in (image.error for image in inputs if image.error):
        raise problem
    for written in export(model, words.to, out, [image.path for image in inputs] or None):
        print(printable(f"{written.path}: takes {written.input}; gives logits (batch, {len(model.class_names)})"))
        print(f"    the same classes for {written.images} images; logits differ by at most {written.difference:.1e}")
    return 0
