"""What a run records of itself: which image was in which split, and what it ran on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.data.sources import Samples
from headstart.utils.files import csv_text
from headstart.utils.versions import versions


def split_table(splits: Mapping[str, Samples], class_names: Sequence[str]) -> str:
    """Which image is in which split, as a csv of image, class and split, with names as they are."""
    rows = [
        (name, class_names[label], split)
        for split, samples in splits.items()
        for name, label in zip(samples.names, samples.labels, strict=True)
    ]
    return csv_text([("image", "class", "split"), *rows], quoted=False)


def split_sha256(table: str) -> str:
    """SHA-256, in hexadecimal, of what `split_table` gives: which images were trained on, by name, class and split."""
    return hashlib.sha256(table.encode("utf-8", "surrogateescape")).hexdigest()


def environment() -> dict[str, Any]:
    """What a run depends on besides its configuration: its command and folder, versions, the machine, git's state."""
    import torch

    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "folder": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """The commit of headstart's own checkout and the files changed since, or None outside of one."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str:
        command = ("git", "-C", str(folder), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": ask("status", "--short").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
