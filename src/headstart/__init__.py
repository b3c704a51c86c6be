"""Transfer learning for image classification: a pretrained backbone, a new head, your images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import torch

    from headstart.advice.result import Advice
    from headstart.checks.result import CheckResult
    from headstart.inference.model import Model

__version__ = "0.1.0"
__all__ = ["advise", "check", "load"]


def load(path: str | Path, device: str | torch.device | None = None) -> Model:
    """Load a trained classifier, such as in `headstart.load(RUN).predict("photo.jpg")`.

    Args:
        path: a run folder, a model folder or a checkpoint.
        device: the device to compute on, such as "cpu" or "cuda"; None takes a GPU if there is one.

    Returns:
        The model, ready to predict.

    Raises:
        ModelError: there is no model at this path, or it is damaged, modified, or written by a newer headstart.
        ConfigError: this machine does not have the device.
    """
    # Imported here, as torch takes seconds to import.
    from headstart.inference.model import Model
    from headstart.models.model_folder import read_artifact

    return Model(read_artifact(path), device)


def check(*overrides: str, tiers: Collection[str] = ("files", "pixels", "features")) -> CheckResult:
    """Check images for what makes results wrong, such as in `headstart.check("data=imagefolder", "data.root=photos")`.

    Nothing is written but to the cache; `headstart check` writes a page.

    Args:
        *overrides: overrides as for train.py: the data and, for the features tier, a model.
        tiers: some of "files", "pixels" and "features".

    Returns:
        The findings, the worst first, and the table of all images.

    Raises:
        ConfigError: an override or a tier is wrong.
        DataError: the images cannot be listed; the message is the same as in training.
        ModelError: the weights of the model are not there.
    """
    from headstart.checks.run import find_issues
    from headstart.config.compose import evaluation_config

    return find_issues(evaluation_config(None, overrides), tiers)


def advise(*overrides: str) -> Advice:
    """Compare backbones on a sample of images, such as in `headstart.advise("data=imagefolder", "data.root=photos")`.

    Nothing is written but to the cache; `headstart advise` writes a page.

    Args:
        *overrides: overrides as for train.py: the data, `advise.models=resnet18,resnet50`, `advise.minutes=5`.

    Returns:
        What was measured, the most accurate first, what could not be had and why, and the one that is recommended.

    Raises:
        ConfigError: an override is wrong.
        DataError: the images cannot be listed; the message is the same as in training.
        ModelError: none of the backbones can be had; the message has the reason of each.
    """
    from headstart.advice.candidates import find_candidates
    from headstart.advice.run import advise as measure
    from headstart.config.compose import evaluation_config

    config = evaluation_config(None, overrides)
    candidates = find_candidates(config.advise.models, fetch=config.advise.fetch)
    return measure(config, candidates, overrides=overrides, shown=False)
