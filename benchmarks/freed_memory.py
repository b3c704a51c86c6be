"""Training on a CPU with freed memory kept for the next step, as headstart has it, and given back, as glibc does.

    python benchmarks/freed_memory.py
    python benchmarks/freed_memory.py --models resnet50 --batch-size 32

Steps of the same network, everything of it trained, in processes of their own, in turns. Printed are the fastest of the
rounds in images a second, their ratio, and the most memory that each took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from functools import partial

import torch
from torch import nn

from headstart.models.backbone import build_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.optimization import build_optimizer
from headstart.training.trainer import keep_freed_memory

WARM = 2  # steps that are not timed


def train(name: str, batch_size: int, steps: int, kept: bool) -> tuple[float, float]:
    """Images a second, and gigabytes of memory at most."""
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
    for step in range(WARM + steps):
        if step == WARM:
            start = time.perf_counter()
        stepper.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        stepper.step()
    speed = steps * batch_size / (time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return speed, peak / 1e9


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18", "resnet50"], help="of torchvision")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}, batches of {arguments.batch_size}")
    spawned = multiprocessing.get_context("spawn")
    for name in arguments.models:
        best = {True: (0.0, 0.0), False: (0.0, 0.0)}
        for _ in range(arguments.rounds):
            for kept in (True, False):
                with spawned.Pool(1) as pool:
                    found = pool.apply(train, (name, arguments.batch_size, arguments.steps, kept))
                best[kept] = max(best[kept], found)
        (ours, our_memory), (theirs, their_memory) = best[True], best[False]
        print(
            f"{name}: kept {ours:.1f} images/s, given back {theirs:.1f}, ratio {ours / theirs:.2f}; "
            f"memory {our_memory:.2f} and {their_memory:.2f} GB"
        )


if __name__ == "__main__":
    main()
