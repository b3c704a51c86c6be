"""Optuna's search for good values, for sweeps that survive.

Hydra imports this module for every command, so it imports little itself, and Optuna when a sweep asks for it.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Takes what `conf/sweep/optuna.yaml` sets of `hydra.sweeper`, which is what hydra-optuna-sweeper takes."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Names the sweep, and takes what Hydra gives a sweeper."""
        from headstart.sweeps.launching import prepare
        from headstart.sweeps.study import StudySweeper

        prepare(config)
        settings = {name: config.hydra.sweeper[name] for name in self._settings}  # now that the sweep has its name
        self._sweeper = StudySweeper(**settings)
        self._sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the trials and tells what came of them.

        Args:
            arguments: the words of the command line.
        """
        self._sweeper.sweep(arguments)
