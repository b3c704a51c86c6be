"""Table of a cross-validation: the metrics of each fold's held-out images, their mean, deviation and interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count, takewhile

from headstart.utils.tables import COLUMNS

Format = Callable[[str, float], str]  # from a metric's name and value to text


def fold_rows(metrics: Mapping[str, float | None], text: Format) -> list[list[str]]:
    """Return a header, a row for each fold, mean ± standard deviation over folds, and the 95 % confidence interval.

    Args:
        metrics: metrics as in the metrics.json of a cross-validation; without one, there are no rows.
        text: formats a value of a metric.
    """
    names = [name for name in COLUMNS if f"folds/mean/{name}" in metrics]
    if not names:
        return []

    def cell(row: str | int, name: str) -> str:
        value = metrics.get(f"folds/{row}/{name}")
        return text(name, math.nan if value is None else value)

    folds = takewhile(lambda fold: f"folds/{fold}/{names[0]}" in metrics, count(1))
    return [
        ["fold", *(name.replace("_", " ") for name in names)],
        *([str(fold), *(cell(fold, name) for name in names)] for fold in folds),
        ["mean ± std", *(f"{cell('mean', name)} ± {cell('std', name)}" for name in names)],
        ["95 % interval", *(f"{cell('low', name)} to {cell('high', name)}" for name in names)],
    ]
