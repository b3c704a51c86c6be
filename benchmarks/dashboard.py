"""Cost of TensorBoard and the report: seconds of an epoch with them and without.

    python benchmarks/dashboard.py

The same runs of a MobileNetV2 on generated images in one process, in turns: with `report=true`; with scalars only,
`report=false`; and with no logger at all, which is what a bare Lightning run of the same classifier does. Once through
the network in every epoch, and once on cached features, where an epoch is so short that any addition shows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from common import build_parser, run_metrics, write_smooth_image

MODES = {
    "report and pictures": ["report=true"],
    "scalars": ["report=false"],
    "nothing": ["report=false", "logger.tensorboard=false"],
}
INPUTS = {
    "through the network": ["features=off", "epochs=3"],
    "on cached features": ["features=auto", "epochs=30", "callbacks.early_stopping=null"],
}


def measure(overrides: list[str], folder: Path) -> tuple[float, float]:
    """Return seconds per epoch, and seconds of the whole run."""
    metrics = run_metrics(overrides, folder)
    return metrics["time/fit_s"] / metrics["epochs/run"], metrics["seconds"]


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name, "images"), np.random.default_rng(0)
        for index in range(arguments.images):
            write_smooth_image(root / "ab"[index % 2] / f"{index}.jpg", rng, (14, 14), (224, 224))
        os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
        data = ["data=imagefolder", f"data.root={root}", "trainer.enable_progress_bar=false"]
        common = [*data, "model=mobilenet_v2", "model.weights=null", "freeze=true"]
        for inputs, overrides in INPUTS.items():
            measure([*common, *overrides, "epochs=1"], Path(name, inputs, "first"))
            seconds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
            for turn in range(arguments.turns):
                for mode, more in MODES.items():
                    folder = Path(name, inputs, f"{mode} {turn}")
                    seconds[mode].append(measure([*common, *overrides, *more], folder))
            fastest = {mode: tuple(map(min, zip(*pairs, strict=True))) for mode, pairs in seconds.items()}
            for mode, (epoch, run) in fastest.items():
                ratio = epoch / fastest["nothing"][0]
                print(f"{inputs}, {mode}: {epoch:.4f} s an epoch, {ratio:.3f} of nothing; run {run:.2f} s")


if __name__ == "__main__":
    main()
