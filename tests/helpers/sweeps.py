"""`python train.py -m OVERRIDES`, and the results in the sweep's folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.helpers.commands import command
from tests.helpers.runs import CONF, FEW, SMALL, read_rows

QUICK = (*SMALL[1:], *FEW, "epochs=2")


def swept(folder: Path, *overrides: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python train.py -m OVERRIDES` into a folder; see `commands.started`."""
    return command("-m", *overrides, f"hydra.sweep.dir={folder}", **settings)


def composed_with_hydra(*overrides: str) -> DictConfig:
    """The configuration of a command line, with Hydra's own part."""
    with initialize_config_dir(str(CONF)):
        return compose("train", list(overrides), return_hydra_config=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """sweep.csv but for the times."""
    table = read_rows(folder / "sweep.csv")
    return [{name: cell for name, cell in row.items() if name != "time/total_s"} for row in table]


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished job wrote its metrics, and how often it was started."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, json.loads((path.parent / "job.json").read_text())["attempts"])
        for path in folder.glob("*/metrics.json")
    }


def check_not_repeated(seen: Sequence[Mapping[str, tuple[int, int]]]) -> None:
    """No finished job was run, or started, again."""
    for before, after in pairwise(seen):
        assert before.items() <= after.items()
