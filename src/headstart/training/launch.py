"""Several processes that are to train as one: what they must be told, and what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headstart.utils.errors import ConfigError


def check_launch(environment: Mapping[str, str], words: Sequence[str]) -> None:
    """Makes sure that several processes write one run folder; each would name one by its own clock.

    Args:
        environment: torchrun sets WORLD_SIZE, srun SLURM_STEP_NUM_TASKS.
        words: of the command line.

    Raises:
        ConfigError: there are several, and the run folder has no name.
    """
    world = started_processes(environment)
    named = any(
        word.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=", "-m", "--multirun")) for word in words
    )
    if world > 1 and not named:
        raise ConfigError(
            f"{world} processes were started, and must write one run folder: name it for all of them, such as "
            f"hydra.run.dir=outputs/mine."
        )


def check_processes(environment: Mapping[str, str], world_size: int, images: Mapping[str, int]) -> None:
    """Makes sure that the processes that were started train as one, and that there is work for each.

    Args:
        environment: see `check_launch`.
        world_size: processes that the Trainer counts on.
        images: how many each split has.

    Raises:
        ConfigError: each would train for itself, or wait for others that nobody starts; or some have no image.
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
                f"{split} has {count} images, and {world_size} processes want one each: take fewer "
                f"(trainer.devices={max(count, 1)}), or more images (data.val_fraction, data.test_fraction)."
            )


def started_processes(environment: Mapping[str, str]) -> int:
    """How many processes torchrun or srun has started; 1 without them."""
    # The step's number of tasks: of a batch script itself, without srun, there is one.
    return int(environment.get("WORLD_SIZE") or environment.get("SLURM_STEP_NUM_TASKS") or "1")
