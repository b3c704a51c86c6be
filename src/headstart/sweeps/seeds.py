"""Mean, standard deviation and confidence interval over runs that differ only in their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from headstart.runs.listing import Plain, Run, differing, format_setting
from headstart.utils.metrics import direction
from headstart.utils.statistics import t_interval

SEED = "seed"
STATISTICS = ("mean", "sd", "low", "high")


@dataclass(frozen=True)
class SeedGroup:
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
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Return the sample standard deviation (n - 1) of the values; None for a single value."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the mean by Student's t (1908); None for a single value."""
        return t_interval(self.values) if len(self.values) > 1 else None

    def matching(self, others: Sequence[SeedGroup]) -> SeedGroup | None:
        """Return the group with the same settings among groups of another metric; None if there is none."""
        return next((other for other in others if other.settings == self.settings), None)

    def text(self) -> str:
        """Format the statistics, such as 0.9576 ± 0.0060 (0.9548 to 0.9604)."""
        if self.interval is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {self.deviation:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f})"

    def cells(self) -> list[str]:
        """Return `STATISTICS` at full precision; empty strings where there are none."""
        numbers = (self.mean, self.deviation, *(self.interval or (None, None)))
        return ["" if number is None else repr(number) for number in numbers]


def group_by_seed(runs: Sequence[Run], metric: str) -> list[SeedGroup]:
    """Group the runs that have a metric by all settings that differ except the seed.

    Returns:
        Groups, the best mean first; empty if no group has two seeds.
    """
    names = [name for name in differing(runs) if name != SEED]
    values: dict[tuple[Any, ...], dict[Any, float]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if value is not None:
            key = tuple(run.settings.get(name) for name in names)
            values.setdefault(key, {})[run.settings.get(SEED)] = value  # one value for each seed
    groups = [SeedGroup(dict(zip(names, key, strict=True)), tuple(by_seed.values())) for key, by_seed in values.items()]
    if all(len(group.values) == 1 for group in groups):
        return []
    return sorted(groups, key=lambda group: group.mean, reverse=direction(metric) == "max")


def seed_rows(groups: Mapping[str, Sequence[SeedGroup]], *, plain: bool) -> list[list[str]]:
    """Return a header and a row for each group; the cells of metrics that a group lacks are empty.

    Args:
        groups: groups by metric; the first metric is the monitored one and has groups.
        plain: whether each number gets its own column, for programs, or each metric one column, for people.
    """
    first = next(iter(groups.values()))
    columns = [f"{name} {statistic}" for name in groups for statistic in STATISTICS] if plain else list(groups)
    rows = [[*first[0].settings, "seeds", *columns]]
    for row_group in first:
        cells = [*map(format_setting, row_group.settings.values()), str(len(row_group.values))]
        for others in groups.values():
            group = row_group.matching(others)
            empty = [""] * (len(STATISTICS) if plain else 1)
            cells += empty if group is None else group.cells() if plain else [group.text()]
        rows.append(cells)
    return rows
