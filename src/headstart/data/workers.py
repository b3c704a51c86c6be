"""Processes that decode images beside the one that computes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

FEW = 8  # images for each process
MAX_WORKERS = 8  # beyond about eight, decoding is rarely what a single accelerator waits for
LOOK_S = 1.0  # between two looks for the parent
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


def begin_worker(worker: int) -> None:  # noqa: ARG001 (a DataLoader gives it)
    """Has a worker process end with the process that started it, whatever it is doing then.

    A DataLoader's own worker looks for its parent only where it waits for work; one that waits to hand over a batch
    would wait for ever when its parent was killed.
    """
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process soon after the one that started it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    starter = multiprocessing.parent_process()
    # Where the parent was gone before this began, its end of a pipe tells.
    while os.getppid() == parent and (starter is None or starter.is_alive()):
        time.sleep(LOOK_S)
    os._exit(1)


def step_back(worker: int) -> None:
    """Likewise, and lets the forward pass go first: its threads wait for each other, and a late one holds up all."""
    begin_worker(worker)
    if hasattr(os, "nice"):
        os.nice(5)  # further back, and on a machine that others use they would hardly run
