"""Checks of runs that torchrun or srun starts as several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstart.utils.errors import ConfigError


def check_launch(environment: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Check that several processes write to the same run folder.

    The default name of a run folder contains the time, so each process would create a folder of its own.

    Raises:
        ConfigError: there are several processes, and no argument names the run folder or starts a sweep.
    """
    world = started_processes(environment)
    named = any(
        word.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=", "-m", "--multirun")) for word in overrides
    )
    if world > 1 and not named:
        raise ConfigError(
            f"{world} processes were started, and must write one run folder: name it for all of them, such as "
            f"hydra.run.dir=outputs/mine."
        )


def check_processes(environment: Mapping[str, str], world_size: int, images: Mapping[str, int]) -> None:
    """Check that the processes that were started train together, and that each gets an image of every split.

    Args:
        environment: the environment variables, of which `started_processes` reads two.
        world_size: the Trainer's `world_size`.
        images: split -> number of its images.

    Raises:
        ConfigError: a split has fewer images than there are processes, or the number of processes differs from
            `world_size`. They would then train separately, or wait for each other forever.
    """
    started = started_processes(environment)
    if started not in (1, world_size):
        raise ConfigError(
            f"{started} processes were started, and this run is set to {world_size}: trainer=ddp "
            f"trainer.num_nodes=MACHINES trainer.devices=PROCESSES_OF_EACH, whose product is {started}."
        )
    for split, count in images.items():
        if count < world_size:
            raise ConfigError(
                f"{split} has too few images ({count}): each of {world_size} processes needs one. Use fewer processes "
                f"(trainer.devices={max(count, 1)}), or more images (data.val_fraction, data.test_fraction)."
            )


def started_processes(environment: Mapping[str, str]) -> int:
    """Return the number of processes that torchrun or srun has started; 1 without them."""
    # SLURM_STEP_NUM_TASKS counts the tasks of this srun step; in a batch script without srun it is 1 or not set.
    return int(environment.get("WORLD_SIZE") or environment.get("SLURM_STEP_NUM_TASKS") or "1")
