"""Continuation of a run that was stopped: from its last checkpoint, or from scratch."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from headstart.models.model_folder import read_checkpoint
from headstart.utils.errors import ModelError

RUN_FILES = (  # what a run writes to its folder, except its log
    *("config.yaml", "environment.json", "split.csv", "metrics.json", "lr_range.csv", "check.json"),
    *("checkpoints", "model", "evaluation", "report", "tensorboard", "csv"),
)
log = logging.getLogger(__name__)


def prepare_to_continue(folder: Path) -> str | None:
    """Return the path of the last checkpoint of a run that was stopped.

    If there is none that can be read, remove the files of that run, except its log, and return None.
    """
    last = folder / "checkpoints" / "last.ckpt"
    try:
        read_checkpoint(last)
    except ModelError as error:
        if last.exists():
            log.warning("%s Training starts from scratch.", error)
        clear(folder)
        return None
    return str(last)


def clear(folder: Path) -> None:
    """Remove the files of a run, except its log."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
