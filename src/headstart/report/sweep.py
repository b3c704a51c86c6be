"""The end of a sweep: the report of its best run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ReportBest(Callback):
    """Hydra's callback that reports on the best job of a sweep, whatever launched it."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Writes the report, unless `report` is not "auto"."""
        if config.get("report") != "auto":
            return
        from headstart.report.again import report_again  # late: a single run has no use for it
        from headstart.runs import find_runs, sorted_by

        root = Path(config.hydra.sweep.dir)
        finished = [run for run in find_runs(root) if run.metrics.get(config.monitor) is not None]
        if finished:
            best = sorted_by(finished, config.monitor)[0]
            print(f"best run: {best.folder}, {config.monitor} {best.metrics[config.monitor]:.4f}")
            print(f"report: {report_again(best.folder)}")
            print(f"all runs: headstart runs {root}")
