"""Times that DataLoader workers spend on reading, decoding and transforming images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class LoadingTimes:
    """Sums of the seconds that the workers of a DataLoader spend, in shared memory.

    Args:
        workers: number of workers; with 0, this process loads the images.

    Attributes:
        seconds: float64, shape (max(workers, 1), 3), with columns for reading, decoding and transforming. Each process
            adds to its own row, so that no locks are needed.
    """

    def __init__(self, workers: int) -> None:
        self.seconds: Tensor = torch.zeros(max(1, workers), 3, dtype=torch.float64)
        self.seconds.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, reading: float, decoding: float, transforming: float) -> None:
        """Add the seconds that one image took; the call itself takes microseconds."""
        worker = get_worker_info()
        row = self.seconds.numpy()[worker.id if worker else 0]
        row[0] += reading
        row[1] += decoding
        row[2] += transforming
