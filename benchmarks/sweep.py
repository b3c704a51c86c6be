"""Twenty heads on cached features in one sweep, against one of them alone.

    python benchmarks/sweep.py --root ../shared/data/emergency-vehicles --weights mobilenet_v2-imagenet.pth

Both are whole processes with a warm feature cache. Also prints a lower bound: as many steps of the same heads in plain
torch on random features, without data loading, metrics, checkpoints or logs.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from common import build_parser, train_seconds
from torch import nn
from torch.nn import functional as F

from headstart.models.head import build_head
from headstart.models.unfreezing import ParameterGroup
from headstart.training.optimization import build_optimizer

BATCH, FEATURES = 32, 1280  # the default batch and MobileNetV2's width
SWEEP = ["head=linear,mlp", "lr=3e-4,1e-3,3e-3,1e-2,3e-2", "optimizer=adam,sgd"]


def plain_seconds(run: Path) -> float:
    """Return the seconds that the steps of a finished run take without anything around them."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    described = json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))
    features, labels = torch.randn(BATCH, FEATURES), torch.randint(2, (BATCH,))
    head: nn.Module = build_head(num_features=FEATURES, num_classes=2, **described["head"])
    optimizer = build_optimizer([ParameterGroup("head", list(head.parameters()), 1.0)], **described["optimizer"])
    start = time.perf_counter()
    for _ in range(metrics["epochs/run"] * -(-metrics["data/train_size"] // BATCH)):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="more of the command line, such as epochs=10")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ["data=emergency", f"data.root={arguments.root.resolve()}", "trainer=cpu"]
        model = ["model=mobilenet_v2", f"model.weights={arguments.weights.resolve()}", *arguments.overrides]
        overrides, cache = [*data, *model], folder / "cache"
        train_seconds([*overrides, "epochs=1", f"hydra.run.dir={folder}/first"], cache)
        one = train_seconds([*overrides, "optimizer=adam", f"hydra.run.dir={folder}/one"], cache)
        sweep = train_seconds(["-m", *overrides, *SWEEP, f"hydra.sweep.dir={folder}/sweep"], cache)
        runs = [path.parent for path in (folder / "sweep").glob("*/metrics.json")]
        epochs = sum(json.loads((run / "metrics.json").read_text())["epochs/run"] for run in runs)
        plain = sum(map(plain_seconds, runs))
    finished = len(runs)
    print(f"one run {one:.1f} s; {finished} runs in one sweep {sweep:.1f} s: {sweep / one:.2f} times one")
    print(f"a run after the first: {(sweep - one) / (finished - 1):.2f} s; {epochs} epochs in all")
    print(f"their steps alone, in plain torch: {plain:.1f} s")


if __name__ == "__main__":
    main()
