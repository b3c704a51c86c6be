"""Trains a classifier: `python train.py model=vgg16 data=stl10 freeze=true`. See conf/train.yaml."""

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

    return train.run(settings, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    sys.excepthook = errors.excepthook
    main()
