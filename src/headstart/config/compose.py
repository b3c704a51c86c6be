"""Config of an evaluation, from a run folder or newly composed, with Hydra overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import headstart
from headstart.config.check import check
from headstart.config.reading import read_config
from headstart.config.renamed import check_renamed
from headstart.config.schema import Config
from headstart.utils.errors import ConfigError, suggestion

CONF = Path(headstart.__file__).parents[2] / "conf"  # next to src/ in a checkout


def evaluation_config(run_folder: Path | None, words: Sequence[str]) -> Config:
    """Return the config of a run with overrides of groups and values.

    Args:
        run_folder: the folder whose config.yaml is overridden; None overrides the defaults in `conf/`.
        words: Hydra overrides, such as `data=imagefolder`, `data.root=FOLDER` or `trainer=gpu`.

    Raises:
        ConfigError: an override is invalid, config.yaml cannot be read, or `conf/` is needed and missing.
    """
    check_renamed(words)
    groups = [f.name for f in fields(Config)]
    for word in words:
        group = word.partition("=")[0].partition(".")[0]
        if group not in groups:
            raise ConfigError(f"unknown key '{group}'.{suggestion(group, groups)} The keys are {', '.join(groups)}.")
    if run_folder is None:
        return check(_compose(words))
    chosen = {word.partition("=")[0] for word in words if "." not in word.partition("=")[0]}
    values = [word for word in words if word.partition("=")[0].partition(".")[0] not in chosen]
    try:
        config: Any = read_config(run_folder / "config.yaml")
        if chosen:
            composed = _compose([word for word in words if word not in values])
            for group in chosen:
                config[group] = composed[group]
        config = OmegaConf.unsafe_merge(config, OmegaConf.from_dotlist(values))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(values)}: {' '.join(str(error).split())[:200]}") from None
    return check(config)


def quoted(text: str) -> str:
    """Quote any text as a value in an override of Hydra."""
    return str(QuotedString(text, Quote.double).with_quotes())


def finetune_preset(name: str) -> dict[str, Any]:
    """Return the settings of `conf/finetune/NAME.yaml` as keyword arguments of `Finetuning`.

    Args:
        name: the name of the fine-tuning strategy.
    """
    shared: Any = OmegaConf.load(CONF / "finetune" / "_base.yaml")
    own: Any = OmegaConf.load(CONF / "finetune" / f"{name}.yaml")
    values = {**shared, **own}
    del values["name"], values["defaults"]
    return values


def _compose(words: Sequence[str]) -> DictConfig:
    if not CONF.is_dir():
        raise ConfigError(
            f"there is no control panel at {CONF}: outside of a run folder, evaluation needs headstart's checkout, "
            f"installed by pip install -e ."
        )
    try:
        with initialize_config_dir(str(CONF)):
            return compose("train", list(words))
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from None
