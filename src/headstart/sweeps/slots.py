"""Where jobs run that share a machine: how many at once, on which cores and which GPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headstart.data.workers import CORES, available_cores
from headstart.sweeps.jobs import POLL_S
from headstart.utils.locks import ByteLocks


@contextmanager
def slot(folder: Path, first: int, slots: int) -> Iterator[int]:
    """One of a machine's places for jobs; waits until one is free.

    Args:
        folder: of the sweep.
        first: the place that is tried first, and the next one if it is taken.
        slots: how many there are.

    Yields:
        The number of the place, from 0.
    """
    locks = ByteLocks(folder / f".slots-{socket.gethostname()}")
    try:
        order = [(first + place) % slots for place in range(slots)]
        while (number := next((place for place in order if locks.take(place)), None)) is None:
            time.sleep(POLL_S)
        yield number
    finally:
        locks.close()


def share(number: int, slots: int, *, gpu: bool) -> dict[str, str]:
    """The environment of a process in one of the places: its share of the cores, and a GPU.

    Args:
        number: of the place.
        slots: how many there are.
        gpu: whether to choose a GPU: the one of that number; with fewer GPUs than places, several share one.
    """
    environment = {CORES: str(max(1, available_cores() // slots))}
    gpus = visible_gpus() if gpu else []
    return environment | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})


def visible_gpus() -> list[str]:
    """NVIDIA's GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=60)
    return [str(place) for place, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []
