"""`headstart export`: write a trained model for ONNX Runtime or torch.export, and compare it with the original."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.utils.console import printable

HELP = "write a model for other runtimes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a run folder, a model folder or a checkpoint")
    parser.add_argument("--to", choices=("onnx", "torch-export"), required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the files (export/ in the run folder)")
    parser.add_argument(
        "--images", nargs="+", metavar="SOURCE", help="images for the comparison, as in predict (generated ones)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    import headstart  # imported here, as it needs torch
    from headstart.inference.export import export
    from headstart.inference.image_inputs import find_images

    model = headstart.load(arguments.model, "cpu")
    out = arguments.out or (model.run_folder or Path()) / "export"
    images = find_images(arguments.images).images if arguments.images else []
    for problem in (image.error for image in images if image.error):
        raise problem
    for written in export(model, arguments.to, out, [image.path for image in images] or None):
        print(printable(f"{written.path}: takes {written.input}; gives logits (batch, {len(model.class_names)})"))
        print(f"    the same classes for {written.images} images; logits differ by at most {written.difference:.1e}")
    return 0
