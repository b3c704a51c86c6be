"""Reader of a run's config.yaml, which may be damaged or come from someone else."""

from __future__ import annotations

import io
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from headstart.utils.errors import ConfigError, format_error
from headstart.utils.files import read_text


def read_config(path: Path) -> DictConfig:
    """Read a config.yaml without resolving its interpolations.

    Raises:
        ConfigError: the file is missing, damaged or not a config.
    """
    try:
        config = OmegaConf.load(io.StringIO(read_text(path)))
        if not isinstance(config, DictConfig):
            raise ValueError("it is a list")
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as a configuration ({format_error(error)}). Copy it again.") from None
    return config
