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
