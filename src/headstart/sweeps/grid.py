"""Grid search as a Hydra sweeper whose sweeps can be resumed.

Hydra imports this module for every command, so imports that take long are inside the methods.
"""

from __future__ import annotations

import random
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from headstart.utils.errors import ConfigError


class GridSweeper(BasicSweeper):
    """A sweeper that runs every combination of the values, or `sweep.sample` of them drawn at random."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Name the sweep, create its folder and store what Hydra passes to a sweeper."""
        from headstart.sweeps.launching import prepare_sweep

        prepare_sweep(config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of the command line's overrides and print the results.

        Raises:
            SystemExit: the settings do not fit, or a job failed and `sweep.allow_failures` is false.
        """
        from headstart.sweeps.launching import JobLauncher
        from headstart.sweeps.naming import swept_keys
        from headstart.sweeps.summary import final_summary

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        deletions = [str(override.input_line) for override in overrides if override.is_delete()]  # not set to null
        (grid,) = self.split_arguments([override for override in overrides if not override.is_delete()], None)
        launcher = JobLauncher(self.launcher, loader, self.config, swept_keys(overrides))
        with final_summary(launcher, self.config):
            if not grid:
                raise ConfigError("there is no job to run: a key has no values.")
            for batch in self.split_overrides_to_chunks(
                draw_sample(grid, self.config.sweep.sample), self.max_batch_size
            ):
                launcher.run([launcher.create_job([*job, *deletions]) for job in batch])


def draw_sample(grid: list[list[str]], size: int | None) -> list[list[str]]:
    """Draw that many jobs of the grid, in its order; a larger sample contains all jobs of a smaller one."""
    if size is None or size >= len(grid):
        return grid
    order = list(range(len(grid)))
    random.Random(0).shuffle(order)
    return [grid[index] for index in sorted(order[:size])]
