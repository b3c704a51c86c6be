"""Early check of the keys of Hydra overrides: unknown and renamed ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from headstart.config.schema import Config
from headstart.utils.errors import ConfigError, suggestion

# Maps an old name to the new one; the new names are those of torch, torchvision, timm and fastai.
RENAMED = {
    "augment.colour": "augment.color_jitter",
    "augment.cutmix": "loss.cutmix",
    "augment.erasing": "augment.random_erasing",
    "augment.mixup": "loss.mixup",
    "augment.operations": "augment.num_ops",
    "finetune.block_decay": "finetune.layer_decay",
    "finetune.thawed_by": "finetune.unfrozen_by",
    "scheduler.every": "scheduler.step_size",
    "scheduler.rise": "scheduler.pct_start",
}


def check_keys(overrides: Sequence[str], others: Sequence[str] = ()) -> None:
    """Reject Hydra overrides of unknown groups and top-level keys, and of renamed keys.

    Args:
        overrides: arguments of a command line; options such as `--config-dir PATH` are ignored.
        others: names that are known besides the keys of `Config`, such as "hydra".

    Raises:
        ConfigError: a key is unknown or was renamed; the message names the nearest or the new key.
    """
    known = [field.name for field in fields(Config)]
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        name = re.split("[./@]", key)[0]
        if key in RENAMED:
            raise ConfigError(renamed_message(key))
        if "=" in override and not override.startswith("-") and name not in (*known, *others):
            raise ConfigError(f"unknown key '{name}'.{suggestion(name, known)} The keys are {', '.join(known)}.")


def renamed_message(key: str) -> str:
    """Return an error message with the new name of a renamed key."""
    return f"{key} is called {RENAMED[key]} now. Write {RENAMED[key]} in place of it."
