"""DataLoader workers: their number, their priority, and their end when the parent process dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

IMAGES_PER_WORKER = 8  # minimum number of images for each worker
MAX_WORKERS = 8  # with about eight, decoding is rarely the bottleneck of a single accelerator
POLL_S = 1.0  # seconds between two checks of the parent process
CORES = "HEADSTART_CORES"  # environment variable: how many cores to use on a shared machine


def available_cores() -> int:
    """Return the number of cores that this process may use, at most `HEADSTART_CORES` if that is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get(CORES, "")
    return min(cores, int(limit)) if limit.isdigit() and int(limit) > 0 else cores


def default_workers(processes: int = 1) -> int:
    """Return the default number of DataLoader workers: one for each available core, from 1 to `MAX_WORKERS`.

    Args:
        processes: training processes on this machine, which divide the cores among them.
    """
    return min(max(available_cores() // processes, 1), MAX_WORKERS)


def workers_for(images: int) -> int:
    """Return the number of workers for some images: at most `default_workers()`, and one for every 8 images.

    For fewer than 8 images it is 0, because decoding them takes less time than starting a process.
    """
    return min(default_workers(), images // IMAGES_PER_WORKER)


def exit_with_parent(worker: int = 0) -> None:  # noqa: ARG001 (required by worker_init_fn)
    """End this process soon after its parent process ends; a daemon thread checks once a second.

    This is a `worker_init_fn` of a DataLoader. Its workers check their parent only while they wait for work. If the
    parent was killed, a worker that waits to hand over a batch would wait forever.
    """
    threading.Thread(target=_exit_after, args=(os.getppid(),), daemon=True).start()


def _exit_after(parent_id: int) -> None:
    parent = multiprocessing.parent_process()
    # If the parent ended before `getppid`, only multiprocessing knows: its pipe to the parent is closed.
    while os.getppid() == parent_id and (parent is None or parent.is_alive()):
        time.sleep(POLL_S)
    os._exit(1)


def lower_priority(worker: int) -> None:
    """Call `exit_with_parent` and lower the priority of this worker below that of the forward pass.

    The threads of a forward pass on the CPU wait for one another, so that a late one delays all of them.
    """
    exit_with_parent(worker)
    if hasattr(os, "nice"):
        os.nice(5)  # with a higher value, workers would hardly run on a shared machine
