"""Direction of metrics: whether smaller or larger is better."""

from __future__ import annotations

from typing import Literal


def direction(metric: str) -> Literal["min", "max"]:
    """Return "min" for metrics that are better when smaller (losses and times), and "max" for all others."""
    return "min" if metric.endswith("loss") or metric.startswith("time/") else "max"
