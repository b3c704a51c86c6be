"""Slots for jobs that share a machine: how many run at once, with how many cores and which GPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.data.workers import CORES, available_cores
from headstart.runs.jobs import POLL_S


@contextmanager
def slot(folder: Path, first: int, slots: int) -> Iterator[int]:
    """Hold one of the machine's slots for jobs; wait until one is free.

    Args:
        folder: the folder of the sweep.
        first: the slot to try first; the following ones are tried next.
        slots: the number of slots.

    Yields:
        The number of the slot, from 0.
    """
    locks = [FileLock(folder / f".slot-{number}-{socket.gethostname()}") for number in range(slots)]
    for number in (attempt % slots for attempt in count(first)):
        with suppress(Timeout):
            locks[number].acquire(timeout=POLL_S / slots)
            break
    try:
        yield number
    finally:
        locks[number].release()


def slot_environment(number: int, slots: int, *, gpu: bool) -> dict[str, str]:
    """Return the environment variables of a process in a slot: its number of cores and, if requested, its GPU.

    With fewer GPUs than slots, several slots use the same GPU.
    """
    environment = {CORES: str(max(1, available_cores() // slots))}
    gpus = visible_gpus() if gpu else []
    return environment | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, in the format of `CUDA_VISIBLE_DEVICES`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=60)
    return [str(index) for index, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []
