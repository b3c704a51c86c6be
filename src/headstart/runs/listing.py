"""Comparison table of all runs below a folder, finished or not: the settings that differ, and the metrics."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headstart.config.check import TOP_LEVEL_KEYS
from headstart.config.reading import read_config
from headstart.models.schemas import METRICS
from headstart.utils.errors import ConfigError, DataError, suggestion
from headstart.utils.files import read_json
from headstart.utils.metrics import direction

Plain = bool | int | float | str
# Settings that do not distinguish runs: of the machine, of the output, and copies of top-level settings.
EXCLUDED_SETTINGS = (
    "trainer",
    "callbacks",
    "logger",
    "ckpt_path",
    "report",
    "check",
    "sweep",
    "advise",
    *(".".join(path) for path in TOP_LEVEL_KEYS.values()),
)
TABLE_METRICS = ("val/accuracy", "val/loss", "test/accuracy", "out_of_fold/accuracy", "epochs/run", "time/total_s")


@dataclass(frozen=True)
class Run:
    """The settings and metrics of a run folder.

    Attributes:
        folder: path of the run folder.
        settings: flat settings from its config.yaml, such as {"head.hidden": 256}; see `flat`.
        metrics: content of its metrics.json; empty if the run has not finished.
        status: what tables show in place of metrics, if there are none.
    """

    folder: Path
    settings: Mapping[str, Plain]
    metrics: Mapping[str, float | None]
    status: str = field(default="not ended", kw_only=True)


def find_runs(root: Path) -> list[Run]:
    """Return the runs in a folder and its subfolders, sorted by path; folders with a leading dot are skipped.

    Raises:
        DataError: if the folder does not exist or contains no run.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Expected one with run folders below it, such as outputs.")
    runs = []
    for path, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "config.yaml" in names:
            folders.clear()  # a run folder contains no other runs
            run = read_run(Path(path))
            runs += [run] if run else []
    if not runs:
        raise DataError(f"{root}: no run folder below it; each has a config.yaml.")
    return runs


def read_run(folder: Path) -> Run | None:
    """Read the run in a folder; return None if it has no readable config.yaml of headstart."""
    try:
        settings = OmegaConf.to_container(read_config(folder / "config.yaml"), resolve=True)
    except (ConfigError, OmegaConfBaseException):
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("monitor"), str):
        return None
    status = "damaged metrics.json" if (folder / "metrics.json").exists() else "not ended"
    return Run(folder, dict(flat(settings)), read_metrics(folder), status=status)


def read_metrics(folder: Path) -> dict[str, float | None]:
    """Read a run folder's metrics.json; return an empty dictionary if it is missing or damaged."""
    try:
        return METRICS.validate_python(read_json(folder / "metrics.json"))
    except (OSError, ValueError):  # ValidationError is a ValueError
        return {}


def flat(
    settings: Mapping[Any, Any], prefix: str = "", left_out: Collection[str] = EXCLUDED_SETTINGS
) -> Iterator[tuple[str, Plain]]:
    """Yield nested settings as pairs such as ("head.hidden", 256).

    Args:
        settings: nested settings.
        prefix: prefix of the names, such as "head.".
        left_out: names of settings or groups to leave out; by default those that do not distinguish runs.
    """
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in left_out:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.", left_out)
        else:
            yield name, "null" if value is None else value if isinstance(value, Plain) else str(value)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the names of the settings that differ between runs or that only some runs have."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def usual_metric(runs: Sequence[Run]) -> str:
    """Return the monitored metric of the first run or, if no run has it, the first of `TABLE_METRICS` that one has."""
    monitored, known = str(runs[0].settings["monitor"]), {name for run in runs for name in run.metrics}
    return next((name for name in (monitored, *TABLE_METRICS) if name in known), monitored)


def sorted_by(runs: Sequence[Run], metric: str) -> list[Run]:
    """Return the runs sorted by a metric, the best first; runs without the metric come last, in their original order.

    Args:
        runs: the runs to sort.
        metric: name of the metric; for losses and times smaller is better, for all others larger.

    Raises:
        ConfigError: if there are metrics, but no run has this one.
    """
    known = sorted({name for run in runs for name in run.metrics})
    if known and metric not in known:
        listed = ", ".join(name for name in known if "/class_accuracy/" not in name)
        raise ConfigError(f"--sort {metric}: no run has it.{suggestion(metric, known)} There are {listed}.")
    sign = 1 if direction(metric) == "min" else -1

    def sort_key(run: Run) -> tuple[bool, float]:
        value = run.metrics.get(metric)
        return (value is None, sign * value if value is not None else 0.0)

    return sorted(runs, key=sort_key)


def table(runs: Sequence[Run], root: Path, metric: str) -> list[list[str]]:
    """Return the rows of a table as text: a header, then a row for each run.

    The columns are the run's folder, the settings that differ, the given metric, and those `TABLE_METRICS` that runs
    have.

    Args:
        runs: the runs, in the order of the rows.
        root: folder that the folders of runs are relative to.
        metric: name of the metric in the first metric column.
    """
    settings = differing(runs)
    metrics = [name for name in dict.fromkeys((metric, *TABLE_METRICS)) if any(name in run.metrics for run in runs)]
    rows = [["run", *settings, *(metrics or ["metrics"])]]
    for run in runs:
        cells = [format_setting(run.settings.get(name)) for name in settings]
        if run.metrics:
            cells += [format_setting(run.metrics.get(name)) for name in metrics]
        else:
            cells += [run.status, *[""] * (len(metrics) - 1)]
        rows.append([run.folder.relative_to(root).as_posix(), *cells])
    return rows


def format_setting(value: Plain | None) -> str:
    """Format a setting or a metric as text, floats with six significant digits; None becomes an empty text."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
