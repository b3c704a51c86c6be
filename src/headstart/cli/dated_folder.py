"""Folders for the pages of commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


def dated_folder(name: str) -> Path:
    """Return outputs/NAME/DATE/TIME."""
    return Path("outputs", name, datetime.now().strftime("%Y-%m-%d/%H-%M-%S"))
