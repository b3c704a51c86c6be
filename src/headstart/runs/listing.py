"""Finished and unfinished runs below a folder, side by side: what differs between them, and what came out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headstart.config.check import REACH_DOWN
from headstart.config.reading import read_config
from headstart.models.schemas import METRICS
from headstart.utils.errors import ConfigError, DataError, suggestion
from headstart.utils.files import read_json
from headstart.utils.metrics import direction

Plain = bool | int | float | str
# Settings of the machine and of what is written, and those that others reach down to: they tell no runs apart.
LEFT_OUT = (
    "trainer",
    "callbacks",
    "logger",
    "ckpt_path",
    "report",
    "sweep",
    *(".".join(place) for place in REACH_DOWN.values()),
)
SHOWN = ("val/accuracy", "val/loss", "test/accuracy", "epochs/run", "time/total_s")


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        settings: its flat control panel.
        metrics: its metrics.json; empty if it has not ended.
    """

    folder: Path
    settings: Mapping[str, Plain]
    metrics: Mapping[str, float | None]


def find_runs(root: Path) -> list[Run]:
    """The runs below a folder, in the order of their paths.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Expected one with run folders below it, such as outputs.")
    runs = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.yaml" in names:
            folders.clear()  # a run holds no other
            run = read_run(Path(place))
            runs += [run] if run else []
    if not runs:
        raise DataError(f"{root}: no run folder below it; each has a config.yaml.")
    return runs


def read_run(folder: Path) -> Run | None:
    """The run in a folder; None if there is no config.yaml, or another program's."""
    try:
        settings = OmegaConf.to_container(read_config(folder / "config.yaml"), resolve=True)
    except (ConfigError, OmegaConfBaseException):
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("monitor"), str):
        return None
    return Run(folder, dict(flat(settings)), read_metrics(folder))


def read_metrics(folder: Path) -> dict[str, float | None]:
    """A run folder's metrics.json; empty if the run has not ended."""
    try:
        return METRICS.validate_python(read_json(folder / "metrics.json"))
    except (OSError, ValueError):  # a ValidationError is one
        return {}


def flat(
    settings: Mapping[Any, Any], prefix: str = "", left_out: Collection[str] = LEFT_OUT
) -> Iterator[tuple[str, Plain]]:
    """Nested settings as pairs such as ("head.hidden", 256), but for those that tell no runs apart."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in left_out:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.", left_out)
        else:
            yield name, "null" if value is None else value if isinstance(value, Plain) else str(value)


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that are not the same in all runs, or that some runs have not."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def sorted_by(runs: Sequence[Run], metric: str) -> list[Run]:
    """The runs by a metric, the best first; those without it last, in their order.

    Args:
        runs: any.
        metric: losses and times are better when smaller, all others when larger.

    Raises:
        ConfigError: no run has that metric.
    """
    known = sorted({name for run in runs for name in run.metrics})
    if known and metric not in known:
        listed = ", ".join(name for name in known if "/class_accuracy/" not in name)
        raise ConfigError(f"--sort {metric}: no run has it.{suggestion(metric, known)} There are {listed}.")
    sign = 1 if direction(metric) == "min" else -1

    def place(run: Run) -> tuple[bool, float]:
        value = run.metrics.get(metric)
        return (value is None, sign * value if value is not None else 0.0)

    return sorted(runs, key=place)


def table(runs: Sequence[Run], root: Path, metric: str) -> list[list[str]]:
    """A row for each run under a header: its folder, what differs, the metric, then others that runs have.

    Args:
        runs: in the order of the rows.
        root: folders are named from here.
        metric: that stands first.
    """
    settings = differing(runs)
    metrics = [name for name in dict.fromkeys((metric, *SHOWN)) if any(name in run.metrics for run in runs)]
    rows = [["run", *settings, *(metrics or ["metrics"])]]
    for run in runs:
        values = [setting(run.settings.get(name)) for name in settings]
        figures = [setting(run.metrics.get(name)) for name in metrics] if run.metrics else []
        if not run.metrics:
            figures = ["not ended", *[""] * (len(metrics) - 1)]
        rows.append([run.folder.relative_to(root).as_posix(), *values, *figures])
    return rows


def setting(value: Plain | None) -> str:
    """A setting or a figure as text; empty where there is none."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
