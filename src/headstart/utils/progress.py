"""A bar for what takes long, with images a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]


class RateColumn(ProgressColumn):
    """How many a second since the start."""

    def render(self, task: Task) -> Text:
        """The text of this column."""
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{task.completed / elapsed:,.0f} images/s" if elapsed and task.completed else "")


@contextmanager
def progress_bar(description: str, total: int, *, shown: bool, stderr: bool = False) -> Iterator[Advance]:
    """Shows a bar while the block runs.

    Args:
        description: what stands in front of it.
        total: how many images there are.
        shown: False shows nothing.
        stderr: on standard error, where standard output is for the results.

    Yields:
        A function to call with the number of images that are done besides those told before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not shown, console=Console(stderr=stderr)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
