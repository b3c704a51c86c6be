"""The model folder: a trained classifier's weights with everything that is needed to use them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import headstart
from headstart.classifier import TransferClassifier
from headstart.record import write_atomically, write_json

FORMAT_VERSION = 1


def save_model(folder: Path, classifier: TransferClassifier, metrics: Mapping[str, float]) -> None:
    """Writes `model.safetensors` (backbone and head) and `model.json` (how to build and feed them).

    Args:
        folder: made if it is not there.
        classifier: its hyperparameters say which network, head, classes and preprocessing it has.
        metrics: the figures of these weights, flat.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in classifier.state_dict().items()
        if name.startswith(("backbone.", "head."))
    }
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "headstart": headstart.__version__,
        **classifier.hparams,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }
    write_atomically(folder / "model.safetensors", lambda path: save_file(tensors, path))
    write_json(folder / "model.json", description)
