"""Lightning's checkpoints: keeping the best, resuming, loading."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from headstart.backbones import build_backbone
from headstart.classifier import TransferClassifier
from headstart.errors import ModelError
from headstart.heads import build_head
from headstart.optimization import direction
from headstart.record import write_atomically

# At the end of the training epoch: a run resumed from there starts with the next epoch and logs none twice.
AT_EPOCH_END: dict[str, Any] = {
    "save_on_train_epoch_end": True,
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


class KeepLast(ModelCheckpoint):
    """Keeps `last.ckpt`, of the last complete epoch, to resume from.

    Lightning's `save_last` is not enough: it writes only when there is a new best one.

    Args:
        folder: where the checkpoint goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, filename="last", **AT_EPOCH_END)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Forgets the file of the run that is resumed: it is that run's."""


class KeepBest(ModelCheckpoint):
    """Keeps `best.ckpt`, of the best epoch by the monitored metric.

    A run resumed in another folder brings the best checkpoint so far with it; Lightning alone would forget it.

    Args:
        folder: where the checkpoints go.
        monitor: the metric; losses are better when smaller, all others when larger.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(dirpath=folder, filename="best", monitor=monitor, mode=direction(monitor), **AT_EPOCH_END)

    @property
    def best(self) -> Path:
        """Where the best checkpoint is."""
        return Path(str(self.dirpath), "best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best checkpoint of the run that is resumed."""
        former = Path(state_dict["best_model_path"])
        if state_dict["dirpath"] != self.dirpath and former.is_file():
            write_atomically(self.best, lambda path: shutil.copyfile(former, path))
            score = state_dict["best_model_score"]
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(self.best),
                "best_k_models": {str(self.best): score},
                "kth_best_model_path": str(self.best),
            }
        super().load_state_dict(state_dict)


def load_checkpoint(path: str | Path) -> TransferClassifier:
    """Builds the classifier that a checkpoint is of, with its weights.

    Args:
        path: a checkpoint of headstart's.

    Returns:
        The classifier in evaluation mode; its `hparams` hold class names and preprocessing.

    Raises:
        ModelError: no such file, or not one of headstart's.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint["hyper_parameters"]
    backbone = build_backbone(**described["model"], weights=None)
    class_names = described["class_names"]
    classifier = TransferClassifier(
        backbone.module,
        build_head(num_features=backbone.num_features, num_classes=len(class_names), **described["head"]),
        class_names,
        freeze=described["freeze"],
        description=described,
    )
    classifier.load_state_dict(checkpoint["state_dict"])
    return classifier.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of headstart's, without pickle.

    Raises:
        ModelError: no such file, damaged, or not one of headstart's.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such checkpoint. Expected a file such as outputs/.../checkpoints/last.ckpt.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} is damaged, or no checkpoint of headstart's ({str(error).splitlines()[0]})."
        ) from None
    if not isinstance(checkpoint, dict) or "class_names" not in checkpoint.get("hyper_parameters", {}):
        raise ModelError(
            f"{path} is no checkpoint of headstart's. To start from a file of weights, use model.weights=PATH."
        )
    return checkpoint


def check_checkpoint(path: str | Path, classifier: TransferClassifier) -> None:
    """Makes sure that a checkpoint can be resumed by this classifier.

    Raises:
        ModelError: it is of another network, head, set of classes, or freezes something else.
    """
    theirs = read_checkpoint(path)["hyper_parameters"]
    ours = dict(classifier.hparams)
    for key in ("model", "head", "class_names", "freeze", "optimizer"):
        if theirs.get(key) != ours[key]:
            raise ModelError(
                f"{path} cannot be resumed: its {key} is {_brief(theirs.get(key))}, and this run's is "
                f"{_brief(ours[key])}. Resume with the settings of the config.yaml beside it, or start anew "
                f"from its weights by model.weights={path}."
            )


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
