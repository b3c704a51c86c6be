"""The run folder: what was run, on what, and what came out. Written so that nothing is ever half there."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.data.sources import Samples

PACKAGES = (
    "headstart",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "timm",
    "scikit-learn",
    "numpy",
    "pillow",
    "matplotlib",
    "safetensors",
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and moves it there, so that a reader sees all of it or none.

    Args:
        path: where the file is to be; its folder is made.
        write: called with a temporary path in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8; names of files that are not UTF-8 keep their bytes."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; NaN and infinity, which JSON has not, become null."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Plain values as JSON has them: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def split_table(splits: Mapping[str, Samples], class_names: Sequence[str]) -> str:
    """Which image is in which split, as a csv of image, class and split."""
    rows = [
        (name, class_names[label], split)
        for split, samples in splits.items()
        for name, label in zip(samples.names, samples.labels, strict=True)
    ]
    return csv_text([("image", "class", "split"), *rows])


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


def versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
