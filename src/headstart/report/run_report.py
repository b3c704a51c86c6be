"""Reports of finished runs, as a web page and for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.fabric.utilities.rank_zero import rank_zero_only

from headstart.config.compose import evaluation_config
from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.build import open_images
from headstart.data.datamodule import ImageDataModule
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.inference.evaluate import check_split
from headstart.models.model_folder import read_artifact
from headstart.runs.finished import read_environment
from headstart.utils.console import printable
from headstart.utils.errors import DataError, HeadstartError, format_error

if TYPE_CHECKING:
    from headstart.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)


@rank_zero_only
def report_run(folder: Path, data: ImageDataModule) -> None:
    """Write the report of a run that has just ended; any error becomes a warning.

    Args:
        folder: the run folder.
        data: the images of the run.
    """
    try:
        place = write_report(folder, data)
    except Exception as error:  # the run itself succeeded: a report must not fail it
        log.warning("there is no report: %s. Try headstart report %s", format_error(error).rstrip("."), folder)
    else:
        print(printable(f"report: {place}"))


def write_report(folder: Path, data: ImageDataModule | None) -> Path:
    """Write report/index.html and report/worst.csv of a run, and add its figures to the run's TensorBoard events.

    Args:
        folder: the run folder.
        data: the images of the run; None leaves out the image grids.

    Returns:
        The path of the web page.

    Raises:
        DataError: the folder holds no finished run.
    """
    from headstart.report.contents import collect  # imported late: matplotlib takes half a second
    from headstart.report.html import write_page
    from headstart.report.tensorboard import write_pictures
    from headstart.runs.finished import read_finished

    run = read_finished(folder)
    contents = collect(run, data)
    if (folder / "tensorboard").is_dir():
        samples = data.splits[run.judged.split] if data else None
        contents.attempt("TensorBoard", lambda: write_pictures(folder / "tensorboard", contents, samples))
    return write_page(contents, folder / "report")


def report_again(folder: Path, words: Sequence[str] = ()) -> Path:
    """Write the report of a run again.

    If its images are not available, the report has none, unless that would replace an earlier report with images.

    Args:
        folder: the run folder.
        words: overrides as for train.py, such as `data.root=FOLDER` for images that were moved.

    Returns:
        The path of the web page.

    Raises:
        HeadstartError: `words` are given, and they do not fit or the images are not available.
        DataError: the folder holds no finished run, or the images of its existing report are not available any more.
    """
    try:
        config = evaluation_config(folder, words)
        try:
            data = images_of(folder, config)
        except HeadstartError:
            former = former_root(folder, config)
            if words or former is None:
                raise
            data = images_of(folder, evaluation_config(folder, [f"data.root={former}"]))
    except HeadstartError as error:
        told = f"{folder}: the images of the report are not to be had: {error} Say data.root=FOLDER if they were moved."
        if words:
            raise
        if (folder / "report" / "index.html").exists():
            raise DataError(f"{told} Remove {folder / 'report'} for a report without them.") from None
        log.warning("%s", told)
        data = None
    return write_report(folder, data)


def former_root(folder: Path, config: Config) -> Path | None:
    """Return a relative `data.root`, resolved from the folder where the run was started; None if it is unknown."""
    root = getattr(config.data, "root", None)
    environment = read_environment(folder)
    if root is None or "folder" not in environment:
        return None
    return Path(environment["folder"], root)


def images_of(folder: Path, config: Config) -> ImageDataModule:
    """Open the images of a run with the same splits and transforms.

    Raises:
        DataError: they do not exist, or differ from those in split.csv.
    """
    images = open_images(config.data)
    artifact = read_artifact(folder)
    check_split(images, artifact)
    preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
    return ImageDataModule(
        images.splits,
        training=training_transform(preprocessing, **asdict(config.augment)),
        evaluation=evaluation_transform(preprocessing),
        batch_size=config.data.first_batch_size,
        num_workers=0,
    )
