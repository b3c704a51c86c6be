"""The report of a run that ended some time ago: its images are looked for where they were, or where they are now."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from headstart.config.compose import evaluation_config
from headstart.config.schema import Config
from headstart.data.augmentation import training_transform
from headstart.data.build import open_source
from headstart.data.datamodule import ImageDataModule
from headstart.data.preprocessing import Preprocessing, evaluation_transform
from headstart.data.splits import make_splits, split_table
from headstart.inference.evaluate import check_split
from headstart.models.model_folder import read_artifact
from headstart.report import write_report
from headstart.runs.finished import read_environment
from headstart.utils.errors import DataError, HeadstartError

log = logging.getLogger(__name__)


def report_again(folder: Path, words: Sequence[str] = ()) -> Path:
    """Writes the report of a run; without its images where they are not to be had, and no former report has them.

    Args:
        folder: the run folder.
        words: as on train.py's command line, such as `data.root=FOLDER` for images that were moved.

    Returns:
        The web page.

    Raises:
        DataError: the folder holds no finished run, or a report whose images are not to be had any more.
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
    """A relative `data.root` from where the run was started."""
    root = getattr(config.data, "root", None)
    environment = read_environment(folder)
    if root is None or "folder" not in environment:
        return None
    return Path(environment["folder"], root)


def images_of(folder: Path, config: Config) -> ImageDataModule:
    """The images of a run, split and transformed as they were.

    Raises:
        DataError: they are not there, or not those that split.csv lists.
    """
    source = open_source(config.data.source, **config.data.of_source())
    splits = make_splits(source, **config.data.of_splits())
    artifact = read_artifact(folder)
    check_split(split_table(splits, source.class_names), artifact)
    preprocessing = Preprocessing.from_dict(artifact.description["preprocessing"])
    return ImageDataModule(
        splits,
        training=training_transform(preprocessing, **config.augment.of_images()),
        evaluation=evaluation_transform(preprocessing),
        batch_size=config.data.first_batch_size,
        num_workers=0,
    )
