"""What looking costs: epochs with everything that TensorBoard and the report show, and without.

    python benchmarks/dashboard.py

The same runs of a MobileNetV2 on generated images in one process, by turns: with `report=true`; with scalars only,
`report=false`; and with no logger at all, which is what a bare Lightning run of the same classifier does. Once through
the network in every epoch, and once on cached features, where an epoch takes a moment and whatever is added shows.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from PIL import Image

ROOT = Path(__file__).parent.parent
WAYS = {
    "report and pictures": ["report=true"],
    "scalars": ["report=false"],
    "nothing": ["report=false", "logger.tensorboard=false"],
}
KINDS = {
    "through the network": ["features=off", "epochs=3"],
    "on cached features": ["features=auto", "epochs=30", "callbacks.early_stopping=null"],
}


def make_images(root: Path, images: int) -> Path:
    """Write generated JPEGs of 224 × 224 in two classes."""
    rng = np.random.default_rng(0)
    for index in range(images):
        path = root / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        coarse.resize((224, 224), Image.Resampling.BILINEAR).save(path)
    return root


def measure(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds an epoch, and seconds of the whole run."""
    from headstart.config.check import check
    from headstart.train import run

    with initialize_config_dir(str(ROOT / "conf")):
        checked = check(compose("train", words))
    start = time.perf_counter()
    run(checked, folder)
    whole = time.perf_counter() - start
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["time/fit_s"] / metrics["epochs/run"], whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = make_images(Path(name, "images"), arguments.images)
        os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
        data = ["data=imagefolder", f"data.root={root}", "trainer.enable_progress_bar=false"]
        always = [*data, "model=mobilenet_v2", "model.weights=null", "freeze=true"]
        for kind, words in KINDS.items():
            measure([*always, *words, "epochs=1"], Path(name, kind, "first"))
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for turn in range(arguments.turns):
                for way, more in WAYS.items():
                    found[way].append(measure([*always, *words, *more], Path(name, kind, f"{way} {turn}")))
            epochs = {way: min(epoch for epoch, _ in taken) for way, taken in found.items()}
            wholes = {way: min(whole for _, whole in taken) for way, taken in found.items()}
            for way in WAYS:
                ratio = epochs[way] / epochs["nothing"]
                print(f"{kind}, {way}: {epochs[way]:.4f} s an epoch, {ratio:.3f} of nothing; run {wholes[way]:.2f} s")


if __name__ == "__main__":
    main()
