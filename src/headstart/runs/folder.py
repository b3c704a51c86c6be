"""Run folder: the files that a run writes, on the process with rank 0 only."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError
from torch import Tensor

from headstart.models.model_folder import save_model
from headstart.runs.environment import environment
from headstart.runs.predictions import CLASS_CURVES, Evaluation
from headstart.utils.errors import ConfigError, DiskError, format_error
from headstart.utils.files import csv_text, remove_unfinished, write_json, write_text

LR_RANGE = "lr_range.csv"
CHECK = "check.json"
CHECKPOINTS = ("last.ckpt", "best.ckpt")
log = logging.getLogger(__name__)


@rank_zero_only
def check_folder(folder: Path, ckpt_path: str | None) -> None:
    """Check the run folder, and remove checkpoints that a killed run left unfinished.

    Raises:
        ConfigError: if the folder contains another run than that of the checkpoint to resume.
    """
    own = ckpt_path is not None and Path(ckpt_path).resolve().is_relative_to(folder.resolve())
    if (folder / "config.yaml").exists() and not own:
        raise ConfigError(
            f"{folder} holds another run. Choose another hydra.run.dir, or remove it, or resume it by "
            f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}."
        )
    for name in CHECKPOINTS:
        remove_unfinished(folder / "checkpoints" / name)


@rank_zero_only
def record_check(folder: Path, counts: Mapping[str, int]) -> None:
    """Write check.json: what the check of the files has found, as the number of findings by kind."""
    write_json(folder / CHECK, counts)


@rank_zero_only
def record_start(folder: Path, config: str, split: str, lr_range: str | None) -> None:
    """Write what the run depends on: config.yaml, environment.json, split.csv and, for lr=auto, lr_range.csv.

    All but environment.json are given as text.
    """
    write_text(folder / "config.yaml", config)
    write_json(folder / "environment.json", environment())
    write_text(folder / "split.csv", csv_text(csv.reader(io.StringIO(split, newline=""))))
    if lr_range is not None:
        write_text(folder / LR_RANGE, lr_range)


@rank_zero_only
def record_evaluations(
    folder: Path, evaluations: Sequence[Evaluation], class_curves: Sequence[Sequence[float]]
) -> None:
    """Write evaluation/: for each split the files of `headstart evaluate`, and the accuracy of each class by epoch.

    A file that cannot be written causes a warning, not an error.
    """
    path = folder / "evaluation"
    try:
        for evaluation in evaluations:
            evaluation.save(path / evaluation.name)
        if evaluations:
            rows = [(epoch, *row) for epoch, row in enumerate(class_curves, start=1)]
            write_text(path / CLASS_CURVES, csv_text([("epoch", *evaluations[0].class_names), *rows]))
    except (OSError, SafetensorError, DiskError) as error:  # the run can finish without these files
        log.warning("the predictions for each image cannot be saved in %s: %s", path, format_error(error))


@rank_zero_only
def record_model(folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write the model folder, `model/` in the run folder; see `save_model` for the arguments."""
    save_model(folder / "model", state, description)


@rank_zero_only
def record_end(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics.json, with a warning if a metric is not finite because the run has diverged."""
    diverged = [name for name, value in metrics.items() if not math.isfinite(value)]
    if diverged:
        log.warning("the run diverged: %s is not a finite number. Try a lower lr.", ", ".join(diverged))
    write_json(folder / "metrics.json", metrics)  # written last: it marks the run as finished
