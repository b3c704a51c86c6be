"""Progress bar with images per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    import lightning.pytorch as pl

Advance = Callable[[int], None]


class RateColumn(ProgressColumn):
    """A column with the average number of images per second since the start."""

    def render(self, task: Task) -> Text:
        """Return the text of this column."""
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{task.completed / elapsed:,.0f} images/s" if elapsed and task.completed else "")


def shows_progress(trainer: pl.Trainer) -> bool:
    """Return whether this process shows the progress bars of a Trainer."""
    return trainer.progress_bar_callback is not None and trainer.is_global_zero


@contextmanager
def progress_bar(description: str, total: int, *, shown: bool, stderr: bool = False) -> Iterator[Advance]:
    """Show a progress bar while the `with` block runs.

    Args:
        description: text in front of the bar.
        total: total number of images.
        shown: whether to show the bar.
        stderr: show it on standard error, for commands that print results on standard output.

    Yields:
        A function that advances the bar by a number of images.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not shown, console=Console(stderr=stderr)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
