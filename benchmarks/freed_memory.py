"""Training on a CPU where freed memory is kept for the next step, as in headstart, or returned to the system.

    python benchmarks/freed_memory.py
    python benchmarks/freed_memory.py --models resnet50 --batch-size 32

glibc returns it by default. Whole networks are trained, each in processes of its own, in turns. Prints images per
second of the fastest round of each, their ratio, and the peak memory.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from functools import partial

import torch
from common import build_parser, describe_machine
from torch import nn

from headstart.models.backbone import build_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer
from headstart.training.trainer import keep_freed_memory

WARM_UP = 2  # steps that are not timed


def train(name: str, batch_size: int, steps: int, kept: bool) -> tuple[float, float]:
    """Return images per second, and the peak memory in gigabytes."""
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    backbone = build_backbone("torchvision", name, None)
    optimizer = partial(build_optimizer, name="adamw", lr=1e-5, weight_decay=0.01)
    head = nn.Linear(backbone.num_features, 2)
    classifier = TransferClassifier(backbone.module, head, ("a", "b"), freeze=False, optimizer=optimizer).train()
    stepper, side = classifier.build_optimizer(), backbone.preprocessing.crop
    images, labels = torch.randn(batch_size, 3, side, side), torch.randint(2, (batch_size,))
    start = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = time.perf_counter()
        stepper.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        stepper.step()
    speed = steps * batch_size / (time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return speed, peak / 1e9


def main() -> None:
    """Print a line for each network."""
    parser = build_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18", "resnet50"], help="of torchvision")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{describe_machine()}, batches of {arguments.batch_size}")
    spawned = multiprocessing.get_context("spawn")
    for name in arguments.models:
        best = {True: (0.0, 0.0), False: (0.0, 0.0)}
        for _ in range(arguments.rounds):
            for kept in (True, False):
                with spawned.Pool(1) as pool:
                    speed_and_memory = pool.apply(train, (name, arguments.batch_size, arguments.steps, kept))
                best[kept] = max(best[kept], speed_and_memory)
        (kept_speed, kept_memory), (speed, memory) = best[True], best[False]
        print(
            f"{name}: kept {kept_speed:.1f} images/s, returned {speed:.1f}, ratio {kept_speed / speed:.2f}; "
            f"memory {kept_memory:.2f} and {memory:.2f} GB"
        )


if __name__ == "__main__":
    main()
