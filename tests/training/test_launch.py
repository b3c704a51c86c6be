"""Processes that torchrun or SLURM has started."""

from __future__ import annotations

import pytest

from headstart.data.workers import CORES, default_workers
from headstart.training.launch import check_launch, check_processes
from headstart.utils.errors import ConfigError

TORCHRUN, SRUN, SBATCH = {"WORLD_SIZE": "4"}, {"SLURM_STEP_NUM_TASKS": "4"}, {"SLURM_NTASKS": "4"}
IMAGES = {"train": 80, "val": 4}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_several_processes_need_one_folder_and_one_trainer(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"4 processes were started, and must write one run folder: .*hydra.run.dir="):
        check_launch(environment, ["lr=1e-3"])
    check_launch(environment, ["lr=1e-3", "hydra.run.dir=outputs/mine"])
    for world_size in (1, 2, 8):
        with pytest.raises(
            ConfigError, match=f"4 processes were started, and this run is set to {world_size}: "
        ) as error:
            check_processes(environment, world_size, IMAGES)
        assert "trainer=ddp trainer.num_nodes=MACHINES trainer.devices=PROCESSES_OF_EACH" in str(error.value)
    check_processes(environment, 4, IMAGES)


@pytest.mark.parametrize("environment", [{}, SBATCH, {"WORLD_SIZE": "1"}])
def test_a_process_alone_needs_neither(environment: dict[str, str]) -> None:
    check_launch(environment, ["lr=1e-3"])
    check_processes(environment, 1, IMAGES)
    check_processes(environment, 4, IMAGES)  # of which Lightning starts three


def test_every_process_needs_an_image_of_every_split() -> None:
    with pytest.raises(
        ConfigError, match=r"val has too few images \(4\): each of 5 processes needs one. .*\(trainer.devices=4\)"
    ):
        check_processes({}, 5, IMAGES)


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = default_workers()
    monkeypatch.setenv(CORES, "1")
    assert default_workers() == default_workers(4) == 1
    monkeypatch.setenv(CORES, str(cores))
    assert default_workers(2) == max(cores // 2, 1)
