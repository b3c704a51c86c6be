"""Lightning's checkpoints: keeping the best, resuming, loading."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headstart.data.preprocessing import Preprocessing
from headstart.models.model_folder import Artifact, has_backbone, read_artifact, read_checkpoint
from headstart.models.network import build_network
from headstart.training.classifier import BACKBONE, TransferClassifier
from headstart.utils.errors import HeadstartError, ModelError
from headstart.utils.files import write_atomically
from headstart.utils.metrics import direction

log = logging.getLogger(__name__)

# At the end of the training epoch: a run resumed from there starts with the next epoch and logs none twice.
AT_EPOCH_END: dict[str, Any] = {
    "save_on_train_epoch_end": True,
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes a checkpoint as a whole or not at all.

    Raises:
        DiskError: there is no room for it; a former checkpoint is still there.
    """
    size = sum(leaf.nbytes for leaf in tree_leaves(dict(checkpoint)) if isinstance(leaf, Tensor))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # of a path, torch.save would not say why it cannot write
            torch.save(checkpoint, file)

    write_atomically(path, write, size=size)


class WholeCheckpoints(TorchCheckpointIO):
    """Has Lightning write checkpoints as a whole or not at all.

    Its own way writes to the folder of temporary files and moves that to its place. From one file system to another,
    moving is copying, and whatever stops it leaves half a file where a whole one was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Writes a checkpoint; see `write_checkpoint`."""
        assert storage_options is None
        write_checkpoint(Path(path), checkpoint)


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

    A resumed run takes over the `best.ckpt` that lies beside the checkpoint it resumes, wherever that folder is now;
    Lightning alone would look for it at its former path, or forget it in another run folder.

    Args:
        folder: where the checkpoint goes.
        monitor: the metric; losses are better when smaller, all others when larger.
        resumed: the checkpoint that is resumed, if any.
    """

    def __init__(self, folder: Path, monitor: str, resumed: Path | None = None) -> None:
        super().__init__(dirpath=folder, filename="best", monitor=monitor, mode=direction(monitor), **AT_EPOCH_END)
        self.former = resumed.parent / "best.ckpt" if resumed else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best checkpoint of the run that is resumed."""
        if self.former is None or not self.former.is_file():
            log.warning("%s is not there: the best checkpoint is looked for among the epochs to come", self.former)
            return
        best = Path(str(self.dirpath), "best.ckpt")
        if best.resolve() != self.former.resolve():
            former = self.former
            write_atomically(best, lambda path: shutil.copyfile(former, path), size=former.stat().st_size)
        score = state_dict["best_model_score"]
        places = {
            "dirpath": str(self.dirpath),
            "best_model_path": str(best),
            "best_k_models": {str(best): score},
            "kth_best_model_path": str(best),
            "kth_value": score,
        }
        super().load_state_dict({**state_dict, **places})


def load_checkpoint(path: str | Path) -> TransferClassifier:
    """The classifier that a checkpoint or a model folder is of, to train or evaluate with Lightning.

    Args:
        path: a checkpoint, a run folder or a model folder. To classify images, `headstart.load` needs less.

    Returns:
        The classifier in evaluation mode; its `hparams` hold class names and preprocessing.

    Raises:
        ModelError: no such file, or not one of headstart's.
    """
    return classifier_of(read_artifact(path))


def classifier_of(artifact: Artifact) -> TransferClassifier:
    """The classifier that was read, in evaluation mode; see `load_checkpoint`."""
    network = build_network(artifact)
    classifier = TransferClassifier(
        network.get_submodule("backbone").requires_grad_(),
        network.get_submodule("head").requires_grad_(),
        artifact.description["class_names"],
        preprocessing=Preprocessing.from_dict(artifact.description["preprocessing"]),
        freeze=artifact.description["freeze"],
        description=artifact.description,
    )
    return classifier.eval()


@contextmanager
def without_backbone(classifier: TransferClassifier, aside: bool = True) -> Iterator[None]:
    """Takes a frozen backbone out of the classifier, whose batches are features while the block runs.

    Checkpoints that are written meanwhile hold the head only: thirty copies of a large backbone that does not change
    would take longer than the epochs between them. `complete_checkpoints` makes them whole.

    Args:
        classifier: with the backbone again afterwards.
        aside: False does nothing.
    """
    backbone = classifier.backbone
    if aside:
        classifier.backbone = nn.Identity()
    try:
        yield
    finally:
        classifier.backbone = backbone


@contextmanager
def head_only_checkpoints(folder: Path, classifier: TransferClassifier, aside: bool) -> Iterator[None]:
    """Trains without the backbone where it is not needed; however that ends, the checkpoints are whole afterwards.

    Args:
        folder: the run folder.
        classifier: see `without_backbone`.
        aside: likewise.
    """
    try:
        with without_backbone(classifier, aside):
            yield
    finally:
        complete_checkpoints(folder / "checkpoints", classifier)


@rank_zero_only
def complete_checkpoints(folder: Path, classifier: TransferClassifier) -> None:
    """Adds the backbone to those of a folder's checkpoints that lack it and are of this backbone.

    Args:
        folder: need not be there.
        classifier: with its backbone.
    """
    if classifier.hparams.get("backbone_sha256") is None:
        return  # not wholly frozen: nothing was left out
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint = read_checkpoint(path)
            same = checkpoint["hyper_parameters"].get("backbone_sha256") == classifier.hparams.get("backbone_sha256")
            if same and not has_backbone(checkpoint):
                for name, value in classifier.backbone.state_dict(prefix=BACKBONE).items():
                    checkpoint["state_dict"][name] = value.cpu()
                write_checkpoint(path, checkpoint)
        except (HeadstartError, OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of others
            log.warning("%s holds the head only, and cannot be completed: %s", path, error)


def check_checkpoint(path: str | Path, classifier: TransferClassifier) -> int:
    """Makes sure that a checkpoint can be resumed by this classifier.

    Returns:
        How many epochs it has seen.

    Raises:
        ModelError: anything that the checkpoint's hyperparameters describe is another: the network, the head, the
            classes, the split, what is frozen, the optimizer, its schedule.
    """
    checkpoint = read_checkpoint(path)
    theirs = checkpoint["hyper_parameters"]
    for key, ours in classifier.hparams.items():
        if key != "batch_size" and theirs.get(key) != ours:  # which may be another in each epoch
            raise ModelError(
                f"{path} cannot be resumed: its {key} is {_brief(theirs.get(key))}, and this run's is "
                f"{_brief(ours)}. Resume with the settings of the config.yaml beside it, or start anew "
                f"from its weights by model.weights={path}."
            )
    return int(checkpoint["epoch"]) + 1


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def restore_best(trainer: pl.Trainer, classifier: TransferClassifier) -> dict[str, int]:
    """Loads the best checkpoint, if the run keeps one.

    Returns:
        `epochs/run` and, of the best checkpoint, `epochs/best`, counted from 1.
    """
    epochs = {"epochs/run": trainer.current_epoch}
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, KeepBest) and keeper.best_model_path:
            checkpoint = read_checkpoint(keeper.best_model_path)
            classifier.on_load_checkpoint(checkpoint)
            classifier.load_state_dict(checkpoint["state_dict"])
            epochs["epochs/best"] = int(checkpoint["epoch"]) + 1
    return epochs
