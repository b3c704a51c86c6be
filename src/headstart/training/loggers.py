"""TensorBoard and CSV loggers, TensorBoard's chart layout and its HPARAMS tab.

Every run imports this module, even without a report, so it imports no plotting library.
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

# The layout of TensorBoard's Custom Scalars tab: which curves share a chart.
LAYOUT = {
    "splits": {
        name.replace("_", " "): ["Multiline", [rf"^(train|val|test)/{name}$"]]
        for name in ("loss", "accuracy", "macro_accuracy", "top5_accuracy")
    },
    "learning rate": {"learning rate": ["Multiline", ["^lr-"]]},
    "speed": {
        "seconds an epoch": ["Multiline", ["^time/epoch_s$"]],
        "images a second": ["Multiline", ["^time/images_per_s$"]],
        "fractions of time: waiting, transfer, compute": ["Multiline", ["^time/(waiting|transfer|compute)$"]],
    },
}


@rank_zero_only
def write_layout(loggers: Sequence[Logger]) -> None:
    """Write the layout of TensorBoard's Custom Scalars tab, where train, val and test share a chart.

    Only the process of rank 0 does this.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer().add_summary(custom_scalars(LAYOUT))  # type: ignore[no-untyped-call]


@rank_zero_only
def write_hyperparameters(loggers: Sequence[Logger], settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Write this run's row of TensorBoard's HPARAMS tab.

    Only the process of rank 0 does this.

    Args:
        loggers: the loggers of the run; only TensorBoard's are used.
        settings: the config as nested plain values.
        metrics: the metrics, named as in metrics.json. Finite metrics of the splits are logged with the prefix `best/`,
            such as `best/val/accuracy`. They are of the best checkpoint, unlike the last points of the curves.
    """
    best = {f"best/{name}": value for name, value in metrics.items() if _is_split_metric(name, value)}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(best, step=int(metrics["epochs/run"]))
            # The experiment summary, which lists the columns, is left out: TensorBoard would use that of a single run
            # for a whole sweep. Without it, TensorBoard collects the columns from all runs.
            _, start, end = hparams(dict(flat(settings)), best)  # type: ignore[no-untyped-call]
            writer = logger.experiment._get_file_writer()
            writer.add_summary(start)
            writer.add_summary(end)
            logger.experiment.flush()


def _is_split_metric(name: str, value: float) -> bool:
    split, _, rest = name.partition("/")
    return split in ("train", "val", "test") and "/" not in rest and math.isfinite(value)


def build_loggers(folder: Path, *, tensorboard: bool, csv: bool) -> list[Logger]:
    """Build the loggers of a run, which write `tensorboard/` and `csv/metrics.csv` in the run folder."""
    loggers: list[Logger] = []
    if tensorboard:
        # Lightning's own hp_metric would be a meaningless second metric beside the monitored one.
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False))
    if csv:
        loggers.append(CSVLogger(folder, name="", version="csv"))
    return loggers
