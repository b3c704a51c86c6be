"""The same settings under several seeds: how much of a figure is luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.runs.listing import Plain, Run, differing, setting
from headstart.utils.metrics import direction

SEED = "seed"
FIGURES = ("mean", "sd", "low", "high")


@dataclass(frozen=True)
class Repeated:
    """A metric of runs that differ in their seeds alone.

    Attributes:
        settings: what they share, of what differs in the sweep.
        values: of each seed.
    """

    settings: dict[str, Plain | None]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the values."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Their standard deviation, of a sample (n - 1); None for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over all seeds, by Student's t (1908); None for a single one."""
        if self.deviation is None:
            return None
        from scipy import stats  # late: it takes a second

        margin = float(stats.t.ppf(0.975, len(self.values) - 1)) * self.deviation / len(self.values) ** 0.5
        return self.mean - margin, self.mean + margin

    def same_of(self, others: Sequence[Repeated]) -> Repeated | None:
        """Returns another metric of the same settings, if there is one."""
        return next((other for other in others if other.settings == self.settings), None)


def repeated(runs: Sequence[Run], metric: str) -> list[Repeated]:
    """The runs grouped by all that differs but the seed; empty if no two differ in their seeds alone.

    Args:
        runs: those without the metric are left out.
        metric: such as test/accuracy.

    Returns:
        The best mean first.
    """
    names = [name for name in differing(runs) if name != SEED]
    groups: dict[tuple[Any, ...], dict[Any, float]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if value is not None:
            key = tuple(run.settings.get(name) for name in names)
            groups.setdefault(key, {})[run.settings.get(SEED)] = value  # one for each seed
    found = [Repeated(dict(zip(names, key, strict=True)), tuple(values.values())) for key, values in groups.items()]
    if all(len(group.values) == 1 for group in found):
        return []
    return sorted(found, key=lambda group: group.mean, reverse=direction(metric) == "max")


def told(group: Repeated | None) -> str:
    """Such as 0.9576 ± 0.0060 (0.9548 to 0.9604)."""
    if group is None:
        return ""
    if group.interval is None:
        return f"{group.mean:.4f}"
    return f"{group.mean:.4f} ± {group.deviation:.4f} ({group.interval[0]:.4f} to {group.interval[1]:.4f})"


def seed_rows(groups: Mapping[str, Sequence[Repeated]], *, plain: bool) -> list[list[str]]:
    """A row for each of the settings under a header; cells of metrics that settings do not have are empty.

    Args:
        groups: of each metric, the monitored one first, which has some.
        plain: a column for each number, for programs; else one for each metric, for people.
    """
    first = next(iter(groups.values()))
    columns = [f"{name} {figure}" for name in groups for figure in FIGURES] if plain else list(groups)
    rows = [[*first[0].settings, "seeds", *columns]]
    for one in first:
        cells = [*map(setting, one.settings.values()), str(len(one.values))]
        for found in groups.values():
            group = one.same_of(found)
            cells += numbers(group) if plain else [told(group)]
        rows.append(cells)
    return rows


def numbers(group: Repeated | None) -> list[str]:
    """Those of `FIGURES`, in full; empty where there are none."""
    if group is None:
        return [""] * len(FIGURES)
    low, high = group.interval or (None, None)
    return ["" if number is None else repr(number) for number in (group.mean, group.deviation, low, high)]
