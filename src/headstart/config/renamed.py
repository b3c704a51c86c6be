"""Keys that have another name now; whoever types the old one is told the new one."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.utils.errors import ConfigError

# The new names are those of torch, torchvision, timm and fastai.
RENAMED = {
    "augment.colour": "augment.color_jitter",
    "augment.erasing": "augment.random_erasing",
    "augment.operations": "augment.num_ops",
    "finetune.block_decay": "finetune.layer_decay",
    "finetune.thawed_by": "finetune.unfrozen_by",
    "scheduler.every": "scheduler.step_size",
    "scheduler.rise": "scheduler.pct_start",
}


def check_renamed(overrides: Sequence[str]) -> None:
    """Refuses overrides of keys that have another name now.

    Args:
        overrides: of the command line.

    Raises:
        ConfigError: there is one; the message has the new name.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in RENAMED:
            raise ConfigError(f"{key} is called {RENAMED[key]} now. Write {RENAMED[key]} in place of it.")
