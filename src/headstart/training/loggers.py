"""What TensorBoard shows of scalars: charts of several splits, and settings and final figures to compare runs by.

Every run needs this, with a report or without: nothing that draws is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import custom_scalars, hparams

from headstart.runs.listing import flat

# The Custom Scalars tab: what belongs together on one chart.
LAYOUT = {
    "splits": {
        name.replace("_", " "): ["Multiline", [rf"^(train|val|test)/{name}$"]]
        for name in ("loss", "accuracy", "macro_accuracy", "top5_accuracy")
    },
    "learning rate": {"learning rate": ["Multiline", ["^lr-"]]},
    "speed": {
        "seconds an epoch": ["Multiline", ["^time/epoch_s$"]],
        "images a second": ["Multiline", ["^time/images_per_s$"]],
        "shares of time: waiting, transfer, compute": ["Multiline", ["^time/(waiting|transfer|compute)$"]],
    },
}


@rank_zero_only
def write_layout(loggers: Sequence[Logger]) -> None:
    """Puts the curves of train, val and test onto the same charts, in the Custom Scalars tab."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer().add_summary(custom_scalars(LAYOUT))  # type: ignore[no-untyped-call]


@rank_zero_only
def write_hyperparameters(loggers: Sequence[Logger], settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Fills TensorBoard's HPARAMS tab with a row for this run.

    Args:
        loggers: of the run; those that are not TensorBoard's are left alone.
        settings: the control panel as nested plain values.
        metrics: as in metrics.json; the figures of the splits are shown as `best/val/accuracy`, being those of the best
            checkpoint, where the curves' last points are not.
    """
    figures = {f"best/{name}": value for name, value in metrics.items() if _is_figure(name, value)}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(figures, step=int(metrics["epochs/run"]))
            # Without the summary that names an experiment's columns: TensorBoard would take those of one run of a sweep
            # for all. So it collects them from the rows.
            _, start, end = hparams(dict(flat(settings)), figures)  # type: ignore[no-untyped-call]
            writer = logger.experiment._get_file_writer()
            writer.add_summary(start)
            writer.add_summary(end)
            logger.experiment.flush()


def _is_figure(name: str, value: float) -> bool:
    split, _, rest = name.partition("/")
    return split in ("train", "val", "test") and "/" not in rest and math.isfinite(value)


def build_loggers(folder: Path, *, tensorboard: bool, csv: bool) -> list[Logger]:
    """TensorBoard's in `tensorboard/` and a table in `csv/metrics.csv` of the run folder."""
    loggers: list[Logger] = []
    if tensorboard:
        # Lightning's own hp_metric would be a second, meaningless figure beside the monitored one.
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False))
    if csv:
        loggers.append(CSVLogger(folder, name="", version="csv"))
    return loggers
