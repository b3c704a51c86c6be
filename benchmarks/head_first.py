"""What a head costs that trains before the backbone unfreezes: on kept features, and through the frozen network.

    python benchmarks/head_first.py --root ../shared/data/hymenoptera --weights mobilenet_v2-imagenet.pth

The same `finetune=head_then_full` of a MobileNetV2 on the same images, by turns: with `features=off`, where the head's
epochs go through the network as they do in fastai's `fine_tune` or in a LightningModule; with `features=auto` and an
empty cache; and again. Printed are seconds of the head's epochs, validation and the computing of features included, and
of the whole run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parent.parent / "conf"
WAYS = {"through the network": "off", "on features, empty cache": "auto", "on features, again": "auto"}


def measure(words: list[str], head_epochs: int, folder: Path) -> tuple[float, float, float]:
    """Seconds of the head's epochs and of the whole run, and the best validation accuracy."""
    from headstart.config.check import check
    from headstart.train import run

    with initialize_config_dir(str(CONF)):
        checked = check(compose("train", words))
    start = time.perf_counter()
    run(checked, folder)
    whole = time.perf_counter() - start
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        seconds = {int(row["epoch"]): float(row["time/epoch_s"]) for row in csv.DictReader(file) if row["time/epoch_s"]}
    head = sum(seconds[epoch] for epoch in range(head_epochs)) + metrics.get("time/features_s", 0.0)
    return head, whole, metrics["val/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder with a folder for each class")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--head-epochs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    words = ["data=imagefolder", f"data.root={arguments.root}", "data.test_fraction=0", "batch_size=16"]
    words += ["model=mobilenet_v2", f"model.weights={arguments.weights}", "augment=flip", "data.cache=decoded"]
    words += ["finetune=head_then_full", "finetune.batchnorm=frozen", f"finetune.head_epochs={arguments.head_epochs}"]
    words += [f"epochs={arguments.head_epochs + 1}", "lr=1e-2", "finetune.backbone_lr=0.003", "optimizer=adamw"]
    words += ["scheduler=cosine", "logger=csv", "report=false", "trainer.enable_progress_bar=false"]
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as name:
            os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
            for way, features in WAYS.items():
                found[way].append(measure([*words, f"features={features}"], arguments.head_epochs, Path(name, way)))
    base = min(head for head, _, _ in found["through the network"])
    for way, taken in found.items():
        head, whole = min(head for head, _, _ in taken), min(whole for _, whole, _ in taken)
        accuracy = taken[0][2]
        print(f"{way}: head {head:.1f} s, {head / base:.3f} of the network's; run {whole:.1f} s; val {accuracy:.4f}")


if __name__ == "__main__":
    main()
