"""Name of the run folder of a command without -m.

train.py imports this module for every command, so imports that take long are inside the function.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def run_name(started: str, *, _root_: DictConfig) -> str:
    """Return the name of a run folder in outputs/; it is a resolver for `hydra.run.dir`.

    A cross-validation is named by its command, such as folds/digits-glyphnet-1f0a3b42, so that the same command
    continues it.

    Args:
        started: name of an ordinary run: when it was started.
        _root_: the whole config, as OmegaConf passes it.
    """
    if _root_.get("folds") is None or OmegaConf.select(_root_, "data.fold") is not None:
        return started
    from headstart.sweeps.naming import sweep_name

    choices = _root_.hydra.runtime.choices
    return f"folds/{sweep_name(f'{choices.data}-{choices.model}', _root_.hydra.overrides.task)}"
