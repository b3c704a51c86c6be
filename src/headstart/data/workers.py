"""Processes that decode images beside the one that computes."""

from __future__ import annotations

import os

FEW = 8  # images for each process
MAX_WORKERS = 8  # beyond about eight, decoding is rarely what a single accelerator waits for
CORES = "HEADSTART_CORES"  # in the environment: how many cores to use, where others run on the same machine


def available_cores() -> int:
    """The cores that this process may use, or what `HEADSTART_CORES` says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get(CORES, "")
    return min(cores, int(said)) if said.isdigit() and int(said) > 0 else cores


def default_workers(processes: int = 1) -> int:
    """One worker a core that this process may use, and at most `MAX_WORKERS`.

    Args:
        processes: that train on this machine, and share its cores.
    """
    return min(max(available_cores() // processes, 1), MAX_WORKERS)


def workers_for(images: int) -> int:
    """As many workers, but none for a few images: they are decoded sooner than a process starts."""
    return min(default_workers(), images // FEW)


def step_back(worker: int) -> None:  # noqa: ARG001 (a DataLoader gives it)
    """Lets the forward pass go first: its threads wait for each other, and a late one holds up all."""
    if hasattr(os, "nice"):
        os.nice(5)  # further back, and on a machine that others use they would hardly run
