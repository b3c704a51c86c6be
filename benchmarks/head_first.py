"""Cost of the epochs of the head before the backbone is unfrozen: on cached features, and through the frozen network.

    python benchmarks/head_first.py --root ../shared/data/hymenoptera --weights mobilenet_v2-imagenet.pth

The same `finetune=head_then_full` of a MobileNetV2 on the same images, in turns: with `features=off`, where the head's
epochs go through the network as they do in fastai's `fine_tune` or in a LightningModule; with `features=auto` and an
empty cache; and again. Prints seconds of the head's epochs, including validation and the computation of features, and
of the whole run.
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

from common import build_parser, run_metrics

MODES = {"through the network": "off", "on features, empty cache": "auto", "on features, again": "auto"}


def measure(overrides: list[str], head_epochs: int, folder: Path) -> tuple[float, float, float]:
    """Return seconds of the head's epochs and of the whole run, and the best validation accuracy."""
    metrics = run_metrics(overrides, folder)
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        seconds = {int(row["epoch"]): float(row["time/epoch_s"]) for row in csv.DictReader(file) if row["time/epoch_s"]}
    head = sum(seconds[epoch] for epoch in range(head_epochs)) + metrics.get("time/features_s", 0.0)
    return head, metrics["seconds"], metrics["val/accuracy"]


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a folder with a folder for each class")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--head-epochs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    overrides = ["data=imagefolder", f"data.root={arguments.root}", "data.test_fraction=0", "batch_size=16"]
    overrides += ["model=mobilenet_v2", f"model.weights={arguments.weights}", "augment=flip", "data.cache=decoded"]
    overrides += [
        "finetune=head_then_full",
        "finetune.batchnorm=frozen",
        f"finetune.head_epochs={arguments.head_epochs}",
    ]
    overrides += [f"epochs={arguments.head_epochs + 1}", "lr=1e-2", "finetune.backbone_lr=0.003", "optimizer=adamw"]
    overrides += ["scheduler=cosine", "logger=csv", "report=false", "trainer.enable_progress_bar=false"]
    results: dict[str, list[tuple[float, float, float]]] = {mode: [] for mode in MODES}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as name:
            os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
            for mode, features in MODES.items():
                folder = Path(name, mode)
                results[mode].append(measure([*overrides, f"features={features}"], arguments.head_epochs, folder))
    base = min(head for head, _, _ in results["through the network"])
    for mode, of_turns in results.items():
        head, run = min(head for head, _, _ in of_turns), min(run for _, run, _ in of_turns)
        accuracy = of_turns[0][2]
        print(f"{mode}: head {head:.1f} s, {head / base:.3f} of the network's; run {run:.1f} s; val {accuracy:.4f}")


if __name__ == "__main__":
    main()
