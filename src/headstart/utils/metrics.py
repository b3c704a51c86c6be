"""The metric that a run is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from headstart.utils.errors import ConfigError, suggestion


def direction(metric: str) -> Literal["min", "max"]:
    """Whether a metric is better when it is smaller ("min", losses and times) or larger ("max", all others)."""
    return "min" if metric.endswith("loss") or metric.startswith("time/") else "max"


def check_monitor(monitor: str, measured: Sequence[str]) -> None:
    """Makes sure that the monitored metric will be measured.

    Args:
        monitor: the metric.
        measured: of each split, without the split.

    Raises:
        ConfigError: it will not; the message lists what is.
    """
    known = [f"{split}/{name}" for split in ("train", "val") for name in measured]
    if monitor not in known:
        raise ConfigError(
            f"monitor={monitor}: this is not measured here (top5_accuracy is, with more than five classes)."
            f"{suggestion(monitor, known)} There are {', '.join(known)}."
        )
