"""Transfer learning for image classification: a pretrained backbone, a new head, your images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from headstart.inference.model import Model

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: str | Path, device: str | torch.device | None = None) -> Model:
    """Loads a trained classifier: `headstart.load(RUN).predict("photo.jpg")`.

    Args:
        path: a run folder, a model folder or a checkpoint.
        device: where to compute, such as "cpu" or "cuda"; None takes a GPU where there is one.

    Raises:
        ModelError: nothing of the kind is there, or it is damaged, changed, or of a newer headstart.
        ConfigError: the device is not there.
    """
    from headstart.inference.model import Model
    from headstart.models.model_folder import (
        read_artifact,  # late: importing headstart takes no time, and torch seconds
    )

    return Model(read_artifact(path), device)
