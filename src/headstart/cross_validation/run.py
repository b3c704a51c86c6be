"""Cross-validation: a run for each fold, then one of the model that is trained on all images."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from headstart import train
from headstart.checks.before_training import check_files
from headstart.config.optimizer_schema import LBFGS
from headstart.config.schema import Config
from headstart.cross_validation.fitted_heads import answer_folds, fits_together
from headstart.cross_validation.results import combine_folds
from headstart.data.build import open_images
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.folds import assign_folds
from headstart.report.fold_table import fold_rows
from headstart.runs.jobs import Job
from headstart.runs.listing import read_metrics
from headstart.runs.predictions import Evaluation, names_of, read_evaluation
from headstart.runs.resuming import prepare_to_continue
from headstart.training.results import Results
from headstart.utils.console import printable
from headstart.utils.errors import DataError
from headstart.utils.tables import show_rows

FOLDS = "folds"  # the folder of the folds' run folders, in that of the cross-validation
log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> float:
    """Cross-validate, unless that has finished, and print a table of the folds.

    Args:
        config: the checked config, with `folds`.
        folder: the run folder; if a cross-validation of the same settings was stopped in it, that is continued.

    Returns:
        The mean over the folds of the monitored metric, on the images that were held out.

    Raises:
        OccupiedError: the folder holds something else.
        HeadstartError: what stops a run; see `train.run`.
    """
    job = Job.from_config(config, folder)
    with job.lock():
        if job.finished:
            log.info("this cross-validation had finished before: nothing is trained")
        else:
            job.check_folder("hydra.run.dir")
            job.record_start()
            cross_validate(config, folder)
            job.record_end(None)
    show_rows(fold_rows(read_metrics(folder), lambda _, value: f"{value:.4f}"))
    print(printable(f"cross-validation: {folder}"))
    return job.value()


def cross_validate(config: Config, folder: Path, *, sweep: bool = False) -> None:
    """Train the models of all folds, then the one on all images, whose run folder this is; continue what was stopped.

    Args:
        config: the checked config, with `folds`.
        folder: the run folder; those of the folds are in its `folds/`.
        sweep: whether this is a job of a sweep; then `report=auto` writes no report.

    Raises:
        HeadstartError: what stops a run; see `train.run`.
    """
    settings = replace(config, ckpt_path=prepare_to_continue(folder))
    images = open_images(config.data)
    check_files(config, images, folder, sweep=sweep)
    results, epochs = judge(config, folder, images)
    chosen = "" if epochs is None else f" for {epochs} epochs, the median of the folds' best"
    log.info("the final model is trained on %s images%s", f"{len(images.splits['train']):,}", chosen)
    train.run(settings, folder, sweep=sweep, folds=results, stop_after=epochs)


def judge(config: Config, folder: Path, images: LabelledImages) -> tuple[Results, int | None]:
    """Train the models of the folds, each of which answers the images that it has not seen.

    The folds are trained one after another; one that has finished is not trained again. Fitted heads are fitted
    together.

    Returns:
        The answers for all images with their metrics, and the median of the epochs that were the best in the folds: as
        long as that, a model without validation images is trained. It is None for fitted heads, which need no choice.

    Raises:
        DataError: a class is too small for the folds, or a finished fold is one of other images.
        HeadstartError: what stops a run; see `train.run`.
    """
    assert config.folds is not None
    samples = images.folded
    assert samples is not None
    assigned = assign_folds(samples, config.folds, config.data.split_seed, class_names=images.class_names)
    if fits_together(config):
        start = time.perf_counter()
        results = combine_folds(samples, assigned, answer_folds(config, folder, images, samples, assigned))
        return _with_seconds(results, time.perf_counter() - start), None
    folders = [folder / FOLDS / str(fold) for fold in range(1, config.folds + 1)]
    answers = [
        _train_fold(config, path, fold, samples.take((assigned == fold).nonzero()[0]))
        for fold, path in enumerate(folders, start=1)
    ]
    metrics = [read_metrics(path) for path in folders]
    seconds = sum(values.get("time/total_s") or 0.0 for values in metrics)
    results = _with_seconds(combine_folds(samples, assigned, answers), seconds)
    return results, None if isinstance(config.optimizer, LBFGS) else median_epochs(metrics)


def median_epochs(metrics: Sequence[Mapping[str, float | None]]) -> int:
    """Return the median of the folds' best epochs, rounded; of a fold without checkpoints, its last epoch counts.

    With more images, an epoch has more steps. Whether as many epochs or as many steps are right is not known
    (Goodfellow et al., *Deep Learning*, 2016, section 7.8); the schedules that were judged are set by epochs.
    """
    return round(median(values.get("epochs/best") or values["epochs/run"] or 1 for values in metrics))


def _with_seconds(results: Results, seconds: float) -> Results:
    """Add the time that the folds took to the metrics."""
    return replace(results, metrics={**results.metrics, "time/folds_s": round(seconds, 3)})


def _train_fold(config: Config, folder: Path, fold: int, held_out: Samples) -> Evaluation:
    """Train the model of a fold, unless that has finished, and return its answers for the images held out."""
    chooses_epoch = not isinstance(config.optimizer, LBFGS)
    val_fraction = config.data.val_fraction if chooses_epoch else 0.0
    settings = replace(config, data=replace(config.data, fold=fold, val_fraction=val_fraction))
    if not read_metrics(folder):
        log.info("fold %d of %d", fold, config.folds)
        unchecked = replace(settings, ckpt_path=prepare_to_continue(folder), check="off")  # the whole has been checked
        train.run(unchecked, folder, sweep=True)
    evaluation = read_evaluation(folder / "evaluation" / "test")
    if evaluation.images != names_of(held_out) or (evaluation.labels != held_out.labels).any():
        raise DataError(
            f"{folder} was trained on other images than there are now. Restore them, or choose another hydra.run.dir "
            f"to begin again."
        )
    return evaluation
