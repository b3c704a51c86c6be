"""The page of a comparison of backbones, and advice.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.advice.charts import accuracy_by_speed, has_curves, learning_curves
from headstart.advice.result import Advice
from headstart.advice.table import at_all, format_rate, licence_name, verdict
from headstart.config.schema import Config
from headstart.report.html import data_name, write_html
from headstart.report.style import svg
from headstart.utils.files import write_json


def write_advice(advice: Advice, config: Config, folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write advice.json and index.html, one file without links to others, and return the page's path.

    Args:
        advice: the result of the comparison.
        config: the configuration that was compared with.
        folder: the folder to write to.
        overrides: the overrides of the command line, for the command that writes the page again.
    """
    write_json(folder / "advice.json", values_of(advice))
    charts = {"speed": svg(accuracy_by_speed(advice))}
    if has_curves(advice):
        charts["curves"] = svg(learning_curves(advice))
    return write_html(
        folder,
        "advise.html.j2",
        data=data_name({f"data.{name}": value for name, value in asdict(config.data).items()}),
        advice=advice,
        charts=charts,
        expected=at_all(advice.recommended, advice.images) or advice.recommended.accuracy,
        verdict=verdict,
        at_all=at_all,
        rate=lambda measured: format_rate(measured.rate),
        licence_name=licence_name,
        command=shlex.join(["headstart", "advise", *overrides]),
    )


def values_of(advice: Advice) -> dict[str, Any]:
    """Return advice as plain values; what is recommended is a name, and everything else as in `Advice`."""
    return {**asdict(advice), "recommended": advice.recommended.candidate.name}
