"""Work for a sweep's worker, in a module that is imported in no time."""

from __future__ import annotations

import multiprocessing

from headstart.utils.errors import HeadstartError


def doubled(value: int) -> int:
    """Twice a number, or one of three errors."""
    if value == 0:
        raise HeadstartError("give another number")
    if value < 0:
        raise ValueError("negative")
    if value > 100:
        raise RuntimeError("too much")
    return 2 * value


def forked() -> int | None:
    """The exit status of a process that this one forks, as a DataLoader does."""
    process = multiprocessing.get_context("fork").Process(target=doubled, args=(1,))
    process.start()
    process.join(timeout=10)
    process.kill()
    return process.exitcode
