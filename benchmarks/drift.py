"""Drift of a backbone that is frozen by `requires_grad_(False)` alone, and the accuracy that it costs.

    python benchmarks/drift.py --root ../shared/data/emergency-vehicles --weights mobilenet_v2-imagenet.pth

Trains the same head on the same images twice: with headstart's freezing, and as a plain LightningModule does it, where
BatchNorm and dropout of the backbone stay in training mode. Prints both validation accuracies and how far BatchNorm's
statistics have drifted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import build_parser, compose_config

from headstart import train
from headstart.training import build, classifier


class PlainClassifier(classifier.TransferClassifier):
    """A classifier whose frozen parameters do not require gradients, and no more."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.unfreezing.frozen = []
        self.train()


def accuracy(root: Path, weights: Path, epochs: int, kind: type[classifier.TransferClassifier]) -> tuple[float, float]:
    """Return the validation accuracy of the last epoch's run, and the largest relative change of a running mean."""
    overrides = ["data=emergency", f"data.root={root}", "model=mobilenet_v2", f"model.weights={weights}"]
    overrides += [
        f"epochs={epochs}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "callbacks=none",
        "features=off",  # the plain network changes while it is trained
        "batch_size=128",
    ]
    build.TransferClassifier = kind
    with tempfile.TemporaryDirectory() as folder:
        val_accuracy = train.run(compose_config(overrides), Path(folder))
        state = torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)["state_dict"]
    before = torch.load(weights, weights_only=True)
    drift = max(
        float((state[f"backbone.{name}"] - value).norm() / value.norm())
        for name, value in before.items()
        if name.endswith("running_mean")
    )
    return val_accuracy, drift


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    for name, kind in (("plain", PlainClassifier), ("headstart", classifier.TransferClassifier)):
        val_accuracy, drift = accuracy(arguments.root, arguments.weights, arguments.epochs, kind)
        if (drift == 0) != (kind is classifier.TransferClassifier):
            raise SystemExit(f"{name} drifts by {drift:.1%}, so that nothing is compared")
        print(f"{name}: best val/accuracy {val_accuracy:.4f}, largest drift of a running mean {drift:.1%}")


if __name__ == "__main__":
    main()
