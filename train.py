"""Trains a classifier: `python train.py model=vgg16 data=stl10 freeze=true`. See conf/train.yaml."""

import atexit
import gc
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from headstart import config, errors


@hydra.main(config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Checks the configuration, then imports torch and runs it."""
    settings = config.check(cfg)

    from headstart import train  # late: a typo must not wait for torch

    if gc.get_freeze_count() == 0:
        gc.freeze()  # a million objects of the libraries, which every collection would go through
        atexit.register(gc.unfreeze)
    job = HydraConfig.get()
    return train.run(settings, Path(job.runtime.output_dir), sweep=job.mode == RunMode.MULTIRUN)


if __name__ == "__main__":
    # Hydra 1.4 makes its callbacks in a way that it warns of; ours is named in conf/train.yaml.
    warnings.filterwarnings("ignore", message=r"hydra.utils.instantiate\(\) resolved _target_='headstart.report.sweep")
    sys.excepthook = errors.excepthook
    main()
