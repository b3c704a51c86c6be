"""Tables on the terminal: metrics of a run, and a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from headstart.utils.console import one_line

COLUMNS = ("loss", "accuracy", "top5_accuracy", "macro_accuracy")


def show_metrics(metrics: Mapping[str, float]) -> None:
    """Print the metrics of each split in a table, one row for each split.

    Args:
        metrics: metrics as in metrics.json; a split is shown if its `data/SPLIT_size` is there.
    """
    splits = [split for split in ("train", "val", "test") if f"data/{split}_size" in metrics]
    columns = [name for name in COLUMNS if f"{splits[0]}/{name}" in metrics]
    table = Table("split", "images", *(name.replace("_", " ") for name in columns))
    for column in table.columns[1:]:
        column.justify = "right"
    for split in splits:
        images = f"{metrics[f'data/{split}_size']:,}"
        table.add_row(split, images, *(f"{metrics[f'{split}/{name}']:.4f}" for name in columns))
    Console().print(table)


def show_run(metrics: Mapping[str, float], folder: Path) -> None:
    """Print a run's metrics for each split, its parameters and times, and its folder.

    Args:
        metrics: metrics as in metrics.json.
        folder: the run folder.
    """
    console, epochs = Console(), metrics["epochs/run"]
    show_metrics(metrics)
    console.print(
        f"{metrics['params/trainable']:,} of {metrics['params/total']:,} parameters trained for "
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'} in {metrics['time/fit_s']:.1f} s, "
        f"{metrics['time/total_s']:.1f} s in all, without start-up and report"
    )
    console.print(f"run folder: {one_line(str(folder))}", soft_wrap=True, highlight=False, markup=False)


def show_rows(rows: Sequence[Sequence[str]], *, left_aligned: int = 1, width: int | None = None) -> None:
    """Print a table.

    Args:
        rows: the header, then the rows.
        left_aligned: the number of left-aligned columns; those after them are right-aligned.
        width: the most characters of a line; left-aligned cells are then folded. None does not limit it.
    """
    # Text, because rich takes brackets in a str for markup
    header = (Column(Text(one_line(name)), overflow="fold") for name in rows[0])
    padding = (0, 1) if width is None else (0, 1, 0, 0)
    table = Table(*header, box=box.SIMPLE_HEAD, padding=padding)
    for column in table.columns[left_aligned:]:
        column.justify = "right"
        column.no_wrap = width is not None
    for row in rows[1:]:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console = Console()
    # As wide as its content: a narrow terminal then wraps the lines, and no number is truncated.
    widest = console.measure(table, options=console.options.update(width=1000)).maximum
    console.width = max(console.width, widest) if width is None else min(width, widest)
    console.print(table)
