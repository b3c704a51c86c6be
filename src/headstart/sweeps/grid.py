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
        from headstart.sweeps.launching import prepare

        prepare(config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs and print the results.

        Args:
            arguments: the overrides of the command line.

        Raises:
            SystemExit: the settings do not fit, or a job failed and `sweep.allow_failures` is false.
        """
        from headstart.sweeps.launching import Launched
        from headstart.sweeps.naming import swept_keys
        from headstart.sweeps.summary import ended

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        words = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        removed = [str(word.input_line) for word in words if word.is_delete()]  # Hydra would set them to null
        (grid,) = self.split_arguments([word for word in words if not word.is_delete()], None)
        launched = Launched(self.launcher, loader, self.config, swept_keys(words))
        with ended(launched, self.config):
            if not grid:
                raise ConfigError("there is no job to run: a key has no values.")
            for batch in self.split_overrides_to_chunks(self._drawn(grid), self.max_batch_size):
                launched.run([launched.job([*job, *removed]) for job in batch])

    def _drawn(self, grid: list[list[str]]) -> list[list[str]]:
        """Return the jobs to run; a larger sample contains all jobs of a smaller one."""
        assert self.config is not None
        sample = self.config.sweep.sample
        if sample is None or sample >= len(grid):
            return grid
        order = list(range(len(grid)))
        random.Random(0).shuffle(order)
        return [grid[place] for place in sorted(order[:sample])]
