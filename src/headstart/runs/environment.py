"""What a run depends on besides its configuration: the machine, the versions and the state of git."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from headstart.utils.versions import versions


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
        # Without locks: a run that is killed meanwhile would leave one, and no commit could be made.
        command = ("git", "--no-optional-locks", "-C", str(folder), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": ask("status", "--short").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
