"""Environment of a run: command, machine, package versions and git state."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from headstart.utils.versions import versions


def environment() -> dict[str, Any]:
    """Return what a run depends on besides its config: command, working folder, machine, versions and git state."""
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
    """Return the commit of headstart's own checkout and the files changed since; None if it is not a git checkout."""
    folder = Path(__file__).parent

    def run_git(*arguments: str) -> str:
        # Without locks, because a killed run would leave a lock file that blocks later commits.
        command = ("git", "--no-optional-locks", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"commit": run_git("rev-parse", "HEAD").strip(), "changed": run_git("status", "--short").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
