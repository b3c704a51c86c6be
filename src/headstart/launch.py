"""Processes that torchrun or SLURM has started: what they must be told to train as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstart.errors import ConfigError


def check_launch(environment: Mapping[str, str], words: Sequence[str]) -> None:
    """Makes sure that several processes write one run folder; each would name one by its own clock.

    Args:
        environment: torchrun sets WORLD_SIZE, srun SLURM_STEP_NUM_TASKS.
        words: of the command line.

    Raises:
        ConfigError: there are several, and the run folder has no name.
    """
    # The step's number of tasks: of a batch script itself, without srun, there is one.
    world = environment.get("WORLD_SIZE") or environment.get("SLURM_STEP_NUM_TASKS") or "1"
    named = any(
        word.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=", "-m", "--multirun")) for word in words
    )
    if int(world) > 1 and not named:
        raise ConfigError(
            f"{world} processes were started, and must write one run folder: name it for all of them, such as "
            f"hydra.run.dir=outputs/mine."
        )
