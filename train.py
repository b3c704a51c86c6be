"""Trains a classifier: `python train.py model=vgg16 data=stl10 freeze=true`. See conf/train.yaml."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from headstart.config.check import check
from headstart.config.compose import quote_patterns
from headstart.config.keys import check_keys
from headstart.sweeps.requirements import check_plugins
from headstart.sweeps.run_name import run_name
from headstart.training.launch import check_launch
from headstart.utils import errors
from headstart.utils.console import guard_logs, say
from headstart.utils.errors import HeadstartError
from headstart.utils.garbage import freeze_imports


@hydra.main(config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Check the configuration, then import torch and run it; a job of a sweep has a process of its own."""
    guard_logs()
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        from headstart.sweeps.job_process import run_job

        return run_job(check(cfg), job)
    try:
        settings = check(cfg)
        from headstart import train  # late: a typo must not wait for torch
        from headstart.cross_validation.run import run as cross_validate

        freeze_imports()
        return (cross_validate if settings.cross_validates else train.run)(settings, Path(job.runtime.output_dir))
    except HeadstartError as error:  # Hydra would log a traceback, in a folder that may belong to another run
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    sys.excepthook = errors.excepthook
    OmegaConf.register_resolver("run_name", run_name)
    check_keys(sys.argv[1:], others=("hydra", "experiment", "launcher"))
    check_plugins(sys.argv[1:])
    check_launch(os.environ, sys.argv[1:])
    sys.argv[1:] = quote_patterns(sys.argv[1:])
    main()
