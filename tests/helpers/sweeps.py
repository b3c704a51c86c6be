"""`python train.py -m WORDS`, and what is looked at in a sweep's folder."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.helpers.commands import command
from tests.helpers.runs import FEW, SMALL

QUICK = (*SMALL[1:], *FEW, "epochs=2")


def swept(folder: Path, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python train.py -m WORDS` into a folder; see `commands.started`."""
    return command("-m", *words, f"hydra.sweep.dir={folder}", **settings)


def rows(folder: Path) -> list[dict[str, str]]:
    """sweep.csv but for the times."""
    with (folder / "sweep.csv").open() as file:
        return [{name: cell for name, cell in row.items() if name != "time/total_s"} for row in csv.DictReader(file)]


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished job wrote its figures, and how often it was begun."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, json.loads((path.parent / "job.json").read_text())["attempts"])
        for path in folder.glob("*/metrics.json")
    }


def check_kept(seen: Sequence[Mapping[str, tuple[int, int]]]) -> None:
    """No finished job was run, or begun, again."""
    for before, after in pairwise(seen):
        assert before.items() <= after.items()
