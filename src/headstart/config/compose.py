"""Config of an evaluation, from a run folder or newly composed, with Hydra overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from headstart.config.check import check
from headstart.config.keys import check_keys
from headstart.config.presets import CONF
from headstart.config.reading import read_config
from headstart.config.schema import Config
from headstart.utils.errors import ConfigError


def evaluation_config(run_folder: Path | None, overrides: Sequence[str]) -> Config:
    """Return the config of a run with overrides of groups and values.

    Args:
        run_folder: the folder whose config.yaml is overridden; None overrides the defaults in `conf/`.
        overrides: Hydra overrides, such as `data=imagefolder`, `data.root=FOLDER` or `trainer=gpu`.

    Raises:
        ConfigError: an override is invalid, config.yaml cannot be read, or `conf/` is needed and missing.
    """
    check_keys(overrides)
    keys = {override: override.partition("=")[0] for override in overrides}
    groups = {override: key.partition(".")[0] for override, key in keys.items()}
    if run_folder is None:
        return check(_compose(overrides))
    replaced = {key for key in keys.values() if "." not in key}
    values = [override for override in overrides if groups[override] not in replaced]
    try:
        config: Any = read_config(run_folder / "config.yaml")
        if replaced:
            composed = _compose([override for override in overrides if override not in values])
            for group in replaced:
                config[group] = composed[group]
        config = OmegaConf.unsafe_merge(config, OmegaConf.from_dotlist(values))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(values)}: {' '.join(str(error).split())[:200]}") from None
    return check(config)


def quote(text: str) -> str:
    """Quote any text as a value in an override of Hydra."""
    return str(QuotedString(text, Quote.double).with_quotes())


def quote_patterns(arguments: Sequence[str]) -> list[str]:
    r"""Return command-line arguments with quotes around regular expressions.

    The shell takes the quotes off `data.group_pattern='(scan\d+)_'`, and Hydra rejects parentheses without quotes.
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_quoted = re.fullmatch(r"""(["']).*\1""", value) is not None
        special = re.search(r"""[][(){}^$ ,:"']""", value) is not None
        needed = key.lstrip("+") == "data.group_pattern" and special and not is_quoted
        quoted.append(f"{key}={quote(value)}" if needed else argument)
    return quoted


def list_names(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with the value of `advise.models=a,b` as a list; Hydra takes it for a sweep."""
    key = "advise.models="
    return [
        f"{key}[{','.join(quote(name.strip()) for name in argument.removeprefix(key).split(',') if name.strip())}]"
        if argument.startswith(key) and not argument.startswith(f"{key}[")
        else argument
        for argument in arguments
    ]


def _compose(overrides: Sequence[str]) -> DictConfig:
    if not CONF.is_dir():
        raise ConfigError(
            f"there is no control panel at {CONF}: outside of a run folder, evaluation needs headstart's checkout, "
            f"installed by pip install -e ."
        )
    try:
        with initialize_config_dir(str(CONF)):
            return compose("train", list_names(quote_patterns(overrides)))
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from None
