"""Renamed config keys, and an error message with the new name."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.utils.errors import ConfigError

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


def check_renamed(overrides: Sequence[str]) -> None:
    """Reject Hydra overrides of renamed keys.

    Raises:
        ConfigError: a key was renamed; the message names the new key.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in RENAMED:
            raise ConfigError(renamed_message(key))


def renamed_message(key: str) -> str:
    """Return an error message with the new name of a renamed key."""
    return f"{key} is called {RENAMED[key]} now. Write {RENAMED[key]} in place of it."
