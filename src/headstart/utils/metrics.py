"""Names of metrics, and whether smaller or larger is better."""

from __future__ import annotations

from typing import Literal

LAST_EPOCH = "last_epoch/"  # prefix of metrics of the last epoch; those without it are of the best checkpoint


def direction(metric: str) -> Literal["min", "max"]:
    """Return "min" for metrics that are better when smaller (losses and times), and "max" for all others."""
    return "min" if metric.endswith("loss") or metric.startswith("time/") else "max"
