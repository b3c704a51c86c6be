"""Check for the optional packages that sweeps need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from headstart.utils.errors import ConfigError

OPTUNA = ("hydra_plugins.hydra_optuna_sweeper", "sweep")
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "sweep")
# Overrides, with the module that each needs and the extra that installs it.
REQUIREMENTS = {
    "sweep=optuna": OPTUNA,
    "sweep=head_lr": OPTUNA,
    "sweep=finetune": OPTUNA,
    "launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "launcher=submitit_local": SUBMITIT,
    "launcher=submitit_slurm": SUBMITIT,
    "launcher=ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def check_plugins(overrides: Sequence[str]) -> None:
    """Check that the packages that a command needs are installed; Hydra's own error would not name them.

    Raises:
        ConfigError: a package is not installed.
    """
    for override in overrides:
        module, extra = REQUIREMENTS.get(override, (None, None))
        if module is not None and not _is_installed(module):
            raise ConfigError(f'{override} needs packages that are not installed: pip install -e ".[{extra}]"')


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing, too
        return False
