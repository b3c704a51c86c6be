"""Optuna's search for good values, for sweeps that survive.

Hydra imports this module for every command, so it imports little itself, and Optuna when a sweep asks for it.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Takes what `conf/sweep/optuna.yaml` sets of `hydra.sweeper`, which is what hydra-optuna-sweeper takes."""

    def __init__(self, **_: Any) -> None: ...  # `setup` reads them, when the sweep has its name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Names the sweep, and takes what Hydra gives a sweeper."""
        from headstart.sweeps.launching import prepare

        prepare(config)
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the trials and tells what came of them.

        Args:
            arguments: the words of the command line.
        """
        from headstart.sweeps.study import search

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        search(self.launcher, self.hydra_context.config_loader, self.config, arguments)
