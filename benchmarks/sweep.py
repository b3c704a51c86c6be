"""Twenty heads on cached features in one sweep, against one of them alone.

    python benchmarks/sweep.py --root ../shared/data/emergency-vehicles --weights mobilenet_v2-imagenet.pth

Both whole processes, with a warm feature cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SWEEP = ["head=linear,mlp", "lr=3e-4,1e-3,3e-3,1e-2,3e-2", "optimizer=adam,sgd"]


def seconds(words: list[str], cache: Path) -> float:
    start = time.perf_counter()
    environment = {**os.environ, "HEADSTART_CACHE": str(cache)}
    subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("words", nargs="*", help="more of the command line, such as epochs=10")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ["data=emergency", f"data.root={arguments.root.resolve()}", "trainer=cpu"]
        model = ["model=mobilenet_v2", f"model.weights={arguments.weights.resolve()}", *arguments.words]
        words, cache = [*data, *model], folder / "cache"
        seconds([*words, "epochs=1", f"hydra.run.dir={folder}/first"], cache)
        one = seconds([*words, f"hydra.run.dir={folder}/one"], cache)
        sweep = seconds(["-m", *words, *SWEEP, f"hydra.sweep.dir={folder}/sweep"], cache)
        finished = len(list((folder / "sweep").glob("*/metrics.json")))
    print(f"one run {one:.1f} s; {finished} runs in one sweep {sweep:.1f} s: {sweep / one:.2f} times one")
    print(f"a run after the first: {(sweep - one) / (finished - 1):.2f} s")


if __name__ == "__main__":
    main()
