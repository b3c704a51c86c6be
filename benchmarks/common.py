"""Helpers of the benchmarks: generated images, runs in this process, commands, and parts in processes of their own.

The scripts are run as `python benchmarks/NAME.py`, which finds this module beside them. What takes long to import is
imported inside the functions, because some scripts measure imports and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from headstart.config.schema import Config

ROOT = Path(__file__).parent.parent


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script, with its lines as they are."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def describe_machine() -> str:
    """Return the GPU or processor, the number of cores and the version of torch."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = gpu or f"{platform.processor() or platform.machine()}, no GPU"
    return f"{device}, {os.cpu_count()} cores, torch {torch.__version__}"


def write_smooth_image(path: Path, rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> None:
    """Write a JPEG of smooth noise.

    Args:
        path: path of the file; its folder is created if necessary.
        rng: source of the noise.
        cells: width and height of the random colours that are enlarged to `size`.
        size: width and height of the image in pixels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (cells[1], cells[0], 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def compose_config(overrides: list[str]) -> Config:
    """Return the checked configuration of `python train.py OVERRIDES`."""
    from hydra import compose, initialize_config_dir

    from headstart.config.check import check

    with initialize_config_dir(str(ROOT / "conf")):
        return check(compose("train", overrides))


def run_metrics(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run `python train.py OVERRIDES` in this process, and return its metrics and the `seconds` of the whole run."""
    from headstart.train import run

    config = compose_config(overrides)
    start = time.perf_counter()
    run(config, folder)
    seconds = time.perf_counter() - start
    return {**json.loads((folder / "metrics.json").read_text(encoding="utf-8")), "seconds": seconds}


def command_seconds(*command: str, cache: Path | None = None) -> float:
    """Time a command from its start to its end; its output is discarded.

    Args:
        *command: the command line, run in the folder of the project.
        cache: the cache of features and images; None uses that of this process.
    """
    environment = {**os.environ, "HEADSTART_CACHE": str(cache)} if cache else None
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def train_seconds(overrides: list[str], cache: Path | None = None) -> float:
    """Time `python train.py OVERRIDES`, the whole process; see `command_seconds`."""
    return command_seconds(sys.executable, "train.py", *overrides, cache=cache)


def run_part(script: str, *arguments: str) -> dict[str, Any]:
    """Run a part of a script in a process of its own, and return the JSON of the last line that it prints."""
    printed = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result
