"""Reports of finished runs: figures for the web page, TensorBoard and notebooks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.fabric.utilities.rank_zero import rank_zero_only

from headstart.utils.console import printable
from headstart.utils.errors import told

if TYPE_CHECKING:
    from headstart.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)


@rank_zero_only
def report_run(folder: Path, data: ImageDataModule) -> None:
    """Reports on a run that has just ended; whatever goes wrong is a warning.

    Args:
        folder: the run folder.
        data: its images.
    """
    try:
        place = write_report(folder, data)
    except Exception as error:  # the run is recorded, and nothing here may look as if it were not
        log.warning("there is no report: %s. Try headstart report %s", told(error).rstrip("."), folder)
    else:
        print(printable(f"report: {place}"))


def write_report(folder: Path, data: ImageDataModule | None) -> Path:
    """Writes report/index.html and report/worst.csv of a run, and adds the pictures to its TensorBoard.

    Args:
        folder: the run folder.
        data: its images; None leaves out the pictures that show them.

    Returns:
        The web page.

    Raises:
        DataError: the folder holds no finished run.
    """
    from headstart.report.contents import collect  # late: matplotlib takes half a second
    from headstart.report.html import write_page
    from headstart.report.tensorboard import write_pictures
    from headstart.runs.finished import read_finished

    run = read_finished(folder)
    contents = collect(run, data)
    if (folder / "tensorboard").is_dir():
        samples = data.splits[run.judged.split] if data else None
        contents.attempt("TensorBoard", lambda: write_pictures(folder / "tensorboard", contents, samples))
    return write_page(contents, folder / "report")
