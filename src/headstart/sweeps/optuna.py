"""Hyperparameter search with Optuna as a Hydra sweeper whose studies can be resumed.

Hydra imports this module for every command, so imports that take long, such as Optuna, are inside the methods.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """A sweeper with the settings of hydra-optuna-sweeper; see `conf/sweep/optuna.yaml`."""

    def __init__(self, **_: Any) -> None: ...  # read from the configuration once the sweep has a name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Name the sweep, create its folder and store what Hydra passes to a sweeper."""
        from headstart.sweeps.launching import prepare_sweep

        prepare_sweep(config)
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials of the command line's overrides and print the results.

        Raises:
            SystemExit: the settings do not fit, another process controls the study, or a job failed and
                `sweep.allow_failures` is false.
        """
        from headstart.sweeps.study import run_search

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        run_search(self.launcher, self.hydra_context.config_loader, self.config, arguments)
