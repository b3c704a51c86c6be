"""Processes by their identifiers."""

from __future__ import annotations

from pathlib import Path


def living(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def group(number: int) -> list[int]:
    """Return the running processes of a group."""
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == number and fields[0] not in "ZX":
            running.append(int(folder.name))
    return running
