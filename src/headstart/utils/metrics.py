"""The metric that a run is judged by."""

from __future__ import annotations

from typing import Literal


def direction(metric: str) -> Literal["min", "max"]:
    """Whether a metric is better when it is smaller ("min", losses and times) or larger ("max", all others)."""
    return "min" if metric.endswith("loss") or metric.startswith("time/") else "max"
