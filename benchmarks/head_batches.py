"""What larger batches do for a head on kept features of many images: seconds of an epoch, and accuracy.

    python benchmarks/head_batches.py --per-class 800

Rendered glyphs, a frozen GlyphNet, kept features, the same epochs by turns: with 32 images a step, which is the rival,
and with as many as `batch_size=null` takes. The features are computed before the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parent.parent / "conf"
SIZES = ("32", "null")


def measure(words: list[str], folder: Path) -> tuple[float, float, int]:
    """Seconds of an epoch, accuracy on test images, and how many images are trained on."""
    from headstart.config.check import check
    from headstart.train import run

    with initialize_config_dir(str(CONF)):
        checked = check(compose("train", words))
    run(checked, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["time/fit_s"] / metrics["epochs/run"], metrics["test/accuracy"], metrics["data/train_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=800, help="glyphs of each of the 62 characters")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3, help="each under a seed of its own")
    arguments = parser.parse_args()
    words = ["data=glyphs", f"data.per_class={arguments.per_class}", f"epochs={arguments.epochs}", "report=false"]
    words += ["callbacks.early_stopping=null", "logger=csv", "trainer.enable_progress_bar=false"]
    found: dict[str, list[tuple[float, float, int]]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
        measure([*words, "epochs=1"], Path(name, "features"))
        for turn in range(arguments.turns):
            for size in SIZES:
                place = Path(name, f"{size}-{turn}")
                found[size].append(measure([*words, f"batch_size={size}", f"seed={turn}"], place))
    base = min(seconds for seconds, _, _ in found["32"])
    for size, taken in found.items():
        seconds = min(seconds for seconds, _, _ in taken)
        accuracies = [accuracy for _, accuracy, _ in taken]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(
            f"batch_size={size}: {taken[0][2]:,} images, {seconds:.2f} s an epoch, {seconds / base:.2f} of 32's; test "
            f"accuracy {statistics.mean(accuracies):.4f} ± {spread:.4f}"
        )


if __name__ == "__main__":
    main()
