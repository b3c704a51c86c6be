"""Trains a classifier: `python train.py model=vgg16 data=stl10 freeze=true`. See conf/train.yaml."""

import atexit
import gc
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
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
    return train.run(settings, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    sys.excepthook = errors.excepthook
    main()
