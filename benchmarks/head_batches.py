"""Larger batches for a head on cached features of many images: seconds per epoch, and accuracy.

    python benchmarks/head_batches.py --per-class 800

Rendered glyphs, a frozen GlyphNet, cached features, the same epochs in turns: with 32 images per step, which is the
rival, and with as many as `batch_size=null` takes. The features are computed before the first run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from common import build_parser, run_metrics

SIZES = ("32", "null")


def measure(overrides: list[str], folder: Path) -> tuple[float, float, int]:
    """Return seconds per epoch, test accuracy, and the number of training images."""
    metrics = run_metrics(overrides, folder)
    return metrics["time/fit_s"] / metrics["epochs/run"], metrics["test/accuracy"], metrics["data/train_size"]


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--per-class", type=int, default=800, help="glyphs of each of the 62 characters")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3, help="each under a seed of its own")
    arguments = parser.parse_args()
    overrides = ["data=glyphs", f"data.per_class={arguments.per_class}", f"epochs={arguments.epochs}", "report=false"]
    overrides += ["callbacks.early_stopping=null", "logger=csv", "trainer.enable_progress_bar=false"]
    results: dict[str, list[tuple[float, float, int]]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        os.environ["HEADSTART_CACHE"] = str(Path(name, "cache"))
        measure([*overrides, "epochs=1"], Path(name, "features"))
        for turn in range(arguments.turns):
            for size in SIZES:
                folder = Path(name, f"{size}-{turn}")
                results[size].append(measure([*overrides, f"batch_size={size}", f"seed={turn}"], folder))
    base = min(seconds for seconds, _, _ in results["32"])
    for size, of_turns in results.items():
        seconds = min(seconds for seconds, _, _ in of_turns)
        accuracies = [accuracy for _, accuracy, _ in of_turns]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(
            f"batch_size={size}: {of_turns[0][2]:,} images, {seconds:.2f} s an epoch, {seconds / base:.2f} of 32's; "
            f"test accuracy {statistics.mean(accuracies):.4f} ± {spread:.4f}"
        )


if __name__ == "__main__":
    main()
