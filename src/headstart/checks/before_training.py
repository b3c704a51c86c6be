"""Check of the files before a run: what is wrong with them is said before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only

from headstart.cache.disk import writable_cache_folder
from headstart.checks.facts import read_facts
from headstart.checks.files import file_findings
from headstart.checks.findings import KINDS, Finding, ordered
from headstart.checks.table import image_table
from headstart.config.schema import Config
from headstart.data.dataset import LabelledImages
from headstart.runs.folder import record_check
from headstart.utils.errors import DataError
from headstart.utils.progress import progress_bar

SHOWN = 10_000  # fewer files are checked before a progress bar would be read
log = logging.getLogger(__name__)
_checked: dict[str, list[Finding]] = {}  # by the settings of the data, for the jobs of a sweep in this process


def check_files(config: Config, images: LabelledImages, folder: Path, *, sweep: bool = False) -> None:
    """Check the files of the images, log what is wrong with them, and write check.json to the run folder.

    What is known of a file is remembered by content, so that a second check reads no file. Images that are no files are
    not checked.

    Args:
        config: the configuration of the run; `check` says what to do.
        images: the images with their splits.
        folder: the run folder.
        sweep: whether this is a job of a sweep: one process checks and logs the same images once.

    Raises:
        DataError: `check=stop`, and there are findings of severity "error".
    """
    if config.check == "off" or isinstance(images.splits["train"].images, np.ndarray):
        return
    if config.check == "warn" and getattr(rank_zero_only, "rank", 0) != 0:  # with check=stop all processes have to end
        return
    key = repr(config.data)
    known = _checked.get(key) if sweep else None
    findings = find_in_files(images, progress=config.trainer.enable_progress_bar) if known is None else known
    if sweep:
        _checked[key] = findings
    record_check(folder, Counter(found.kind for found in findings))
    if known is None:
        log_findings(findings)
    if config.check == "stop":
        stop_at_errors(findings)


def find_in_files(images: LabelledImages, *, progress: bool) -> list[Finding]:
    """Return what is wrong with the files of the images, in the order of `KINDS`."""
    table = image_table(images)
    with progress_bar("Checking", len(table), shown=progress and len(table) > SHOWN) as advance:
        facts = read_facts(table, decode=False, folder=writable_cache_folder(), advance=advance)
    return ordered(file_findings(table, facts))


@rank_zero_only
def log_findings(findings: list[Finding]) -> None:
    """Log a line for each kind of error or warning: what it is, how many there are, and an example."""
    counts = Counter(found.kind for found in findings)
    for kind, count in counts.items():
        if KINDS[kind].severity != "note":
            example = next(found for found in findings if found.kind == kind)
            log.warning("%s: %d, such as %s. `headstart check` shows them", KINDS[kind].title, count, named(example))


def stop_at_errors(findings: list[Finding]) -> None:
    """Raise a DataError if there are findings of severity "error"."""
    errors = [found for found in findings if KINDS[found.kind].severity == "error"]
    if errors:
        counts = Counter(KINDS[found.kind].title for found in errors)
        kinds = "; ".join(f"{title}: {count}" for title, count in counts.items())
        raise DataError(
            f"check=stop, and there are errors in the data. {kinds}; such as {named(errors[0])}. "
            f"{KINDS[errors[0].kind].advice} `headstart check` with the same data shows them, and check=warn trains "
            f"nevertheless."
        )


def named(found: Finding) -> str:
    """Return the name of an image, or the names of both."""
    return f"{found.image} and {found.other}" if found.other else found.image
