"""Reports of finished runs, as a web page and for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from headstart.config.compose import evaluation_config
from headstart.data.augmentation import training_transform
from headstart.data.build import open_images
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.inference.evaluate import check_split
from headstart.models.model_folder import read_artifact
from headstart.runs.finished import read_environment
from headstart.runs.predictions import OUT_OF_FOLD
from headstart.utils.console import printable
from headstart.utils.errors import DataError, HeadstartError, format_error

log = logging.getLogger(__name__)


@rank_zero_only
def report_run(folder: Path, data: ImageDataModule) -> None:
    """Write the report of a run that has just ended; any error becomes a warning."""
    log.info("writing the report")
    try:
        page = write_report(folder, data)
    except Exception as error:  # the run itself succeeded: a report must not fail it
        log.warning("there is no report: %s. Try headstart report %s", format_error(error).rstrip("."), folder)
    else:
        print(printable(f"report: {page}"))


def write_report(folder: Path, data: ImageDataModule | None) -> Path:
    """Write report/ of a run folder, add its figures to the TensorBoard events, and return the path of the web page.

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
        samples = data.splits[run.evaluation.split] if data else None
        contents.attempt("TensorBoard", lambda: write_pictures(folder / "tensorboard", contents, samples))
    return write_page(contents, folder / "report")


def report_again(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Write the report of a run again, and return the path of the web page.

    If its images are not available, the report has none, unless that would replace an earlier report with images.

    Args:
        folder: the run folder.
        overrides: overrides as for train.py, such as `data.root=FOLDER` for images that were moved.

    Raises:
        HeadstartError: `overrides` are given, and they do not fit or the images are not available.
        DataError: the folder holds no finished run, or the images of its existing report are not available any more.
    """
    data = None
    try:
        data = images_of(folder, overrides)
    except HeadstartError as error:
        if overrides:
            raise
        message = (
            f"{folder}: the images of this run are not available: {error} Set data.root=FOLDER if they were moved."
        )
        if (folder / "report" / "index.html").exists():
            raise DataError(f"{message} Remove {folder / 'report'} for a report without them.") from None
        log.warning("%s", message)
    return write_report(folder, data)


def images_of(folder: Path, overrides: Sequence[str] = ()) -> ImageDataModule:
    """Open the images of a run with the same splits and transforms, after overrides such as `data.root=FOLDER`.

    A relative `data.root` that does not hold them is also looked up from the folder where the run was started.

    Raises:
        ConfigError: an override does not fit.
        DataError: the images do not exist, or differ from those in split.csv.
    """
    config = evaluation_config(folder, overrides)
    artifact = read_artifact(folder)
    try:
        images = open_images(config.data)
        check_split(images, artifact)
    except HeadstartError:
        root, start = getattr(config.data, "root", None), read_environment(folder).get("folder")
        if overrides or root is None or start is None:
            raise
        return images_of(folder, [f"data.root={Path(start, root)}"])
    preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
    data = ImageDataModule(
        images.splits,
        training=training_transform(preprocessing, **asdict(config.augment)),
        evaluation=evaluation_transform(preprocessing),
        batch_size=config.data.first_batch_size,
        num_workers=0,
    )
    return with_folded(data, images)


def with_folded(data: ImageDataModule, images: LabelledImages) -> ImageDataModule:
    """Add the images of a cross-validation to the splits of a data module, for the report; nothing without one."""
    if images.folded is not None:
        data.splits[OUT_OF_FOLD] = images.folded
    return data
