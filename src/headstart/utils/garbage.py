"""Garbage collection in a process that has imported large libraries."""

from __future__ import annotations

import atexit
import gc

FEW = 10_000  # objects: Python 3.12 itself freezes some hundred when it starts, and the libraries are half a million


def freeze_imports() -> None:
    """Keep what has been imported out of every later garbage collection; do nothing if that was done before.

    A run begins with a collection, which would otherwise go through half a million objects of the libraries.
    """
    if gc.get_freeze_count() < FEW:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries look for what is left at the end
