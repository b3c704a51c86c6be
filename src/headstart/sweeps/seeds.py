"""Mean, standard deviation and confidence interval over runs that differ only in their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.runs.listing import Plain, Run, differing, format_setting
from headstart.utils.metrics import direction

SEED = "seed"
FIGURES = ("mean", "sd", "low", "high")


@dataclass(frozen=True)
class Repeated:
    """A metric of runs that differ only in their seeds.

    Attributes:
        settings: their common values of the settings that differ within the sweep.
        values: the metric for each seed.
    """

    settings: dict[str, Plain | None]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean of the values."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Return the sample standard deviation (n - 1) of the values; None for a single value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the mean by Student's t (1908); None for a single value."""
        if self.deviation is None:
            return None
        from scipy import stats  # imported late: it takes a second

        margin = float(stats.t.ppf(0.975, len(self.values) - 1)) * self.deviation / len(self.values) ** 0.5
        return self.mean - margin, self.mean + margin

    def same_of(self, others: Sequence[Repeated]) -> Repeated | None:
        """Return the group with the same settings among groups of another metric; None if there is none."""
        return next((other for other in others if other.settings == self.settings), None)


def repeated(runs: Sequence[Run], metric: str) -> list[Repeated]:
    """Group runs by all settings that differ except the seed.

    Args:
        runs: the runs; those without the metric are left out.
        metric: a metric such as test/accuracy.

    Returns:
        Groups, the best mean first; empty if no group has two seeds.
    """
    names = [name for name in differing(runs) if name != SEED]
    groups: dict[tuple[Any, ...], dict[Any, float]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if value is not None:
            key = tuple(run.settings.get(name) for name in names)
            groups.setdefault(key, {})[run.settings.get(SEED)] = value  # one value for each seed
    found = [Repeated(dict(zip(names, key, strict=True)), tuple(values.values())) for key, values in groups.items()]
    if all(len(group.values) == 1 for group in found):
        return []
    return sorted(found, key=lambda group: group.mean, reverse=direction(metric) == "max")


def told(group: Repeated | None) -> str:
    """Format a group's statistics, such as 0.9576 ± 0.0060 (0.9548 to 0.9604); None gives an empty string."""
    if group is None:
        return ""
    if group.interval is None:
        return f"{group.mean:.4f}"
    return f"{group.mean:.4f} ± {group.deviation:.4f} ({group.interval[0]:.4f} to {group.interval[1]:.4f})"


def seed_rows(groups: Mapping[str, Sequence[Repeated]], *, plain: bool) -> list[list[str]]:
    """Return a header and a row for each group; the cells of metrics that a group lacks are empty.

    Args:
        groups: groups by metric; the first metric is the monitored one and has groups.
        plain: whether each number gets its own column, for programs, or each metric one column, for people.
    """
    first = next(iter(groups.values()))
    columns = [f"{name} {figure}" for name in groups for figure in FIGURES] if plain else list(groups)
    rows = [[*first[0].settings, "seeds", *columns]]
    for one in first:
        cells = [*map(format_setting, one.settings.values()), str(len(one.values))]
        for found in groups.values():
            group = one.same_of(found)
            cells += numbers(group) if plain else [told(group)]
        rows.append(cells)
    return rows


def numbers(group: Repeated | None) -> list[str]:
    """Return the statistics of `FIGURES` at full precision; empty strings where there are none."""
    if group is None:
        return [""] * len(FIGURES)
    low, high = group.interval or (None, None)
    return ["" if number is None else repr(number) for number in (group.mean, group.deviation, low, high)]
