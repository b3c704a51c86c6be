"""How long a loader's processes take to read, decode and transform images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Stopwatch:
    """Adds up the seconds of a loader's processes, in memory that they share.

    Args:
        workers: processes of the loader; 0 is this one.

    Attributes:
        seconds: float64, shape (processes, 3): reading, decoding, transforming. Each process adds to a row of its own,
            so that none has to wait for another.
    """

    def __init__(self, workers: int) -> None:
        self.seconds: Tensor = torch.zeros(max(1, workers), 3, dtype=torch.float64)
        self.seconds.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, reading: float, decoding: float, transforming: float) -> None:
        """Adds an image's seconds; takes microseconds."""
        worker = get_worker_info()
        row = self.seconds.numpy()[worker.id if worker else 0]
        row[0] += reading
        row[1] += decoding
        row[2] += transforming
