"""What sweeps need that not everyone has installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from headstart.utils.errors import ConfigError

OPTUNA = ("hydra_plugins.hydra_optuna_sweeper", "sweep")
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "sweep")
# The words of the command line, the module that each needs, and the extra that brings it.
NEEDS = {
    "sweep=optuna": OPTUNA,
    "sweep=head_lr": OPTUNA,
    "sweep=finetune": OPTUNA,
    "launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "launcher=submitit_local": SUBMITIT,
    "launcher=submitit_slurm": SUBMITIT,
    "launcher=ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def check_plugins(words: Sequence[str]) -> None:
    """Makes sure that what a command asks for is installed; Hydra would only say that it does not know it.

    Args:
        words: of the command line.

    Raises:
        ConfigError: it is not.
    """
    for word in words:
        module, extra = NEEDS.get(word, (None, None))
        if module is not None and not _there(module):
            raise ConfigError(f'{word} needs packages that are not installed: pip install -e ".[{extra}]"')


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
