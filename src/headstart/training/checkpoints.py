"""Lightning checkpoints: save the best and the last, resume, load."""

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

# Saved at the end of the training epoch, so that a resumed run starts with the next epoch and logs no epoch twice.
AT_EPOCH_END: dict[str, Any] = {
    "save_on_train_epoch_end": True,
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: completely or not at all.

    Raises:
        DiskError: the disk is full; a previous checkpoint at this path stays as it was.
    """
    size = sum(leaf.nbytes for leaf in tree_leaves(dict(checkpoint)) if isinstance(leaf, Tensor))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch.save does not report why writing failed
            torch.save(checkpoint, file)

    write_atomically(path, write, size=size)


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint plugin that makes Lightning write checkpoints atomically.

    Lightning itself writes to the folder of temporary files and moves the file from there. Between two file systems
    that move is a copy. If it is interrupted, a partial file replaces the previous checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint; see `write_checkpoint`."""
        assert storage_options is None
        write_checkpoint(Path(path), checkpoint)


class LastCheckpoint(ModelCheckpoint):
    """A callback that saves `last.ckpt` after every epoch, to resume from.

    Lightning's `save_last` is not enough: it saves only when there is a new best checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, filename="last", **AT_EPOCH_END)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state of the resumed run: its `last.ckpt` belongs to that run's folder."""


class BestCheckpoint(ModelCheckpoint):
    """A callback that saves `best.ckpt`, the checkpoint of the best epoch by the monitored metric.

    Of epochs with the same value, the one with the lowest loss on the same split is the best: where few images are
    validated, many epochs classify all of them correctly, and the first of these is rarely the best on other images.

    A resumed run copies the `best.ckpt` that is in the same folder as the checkpoint it resumes. Lightning alone would
    look for it at its original path, and drop it if the run folder is another one.

    Args:
        folder: the folder of the checkpoint.
        monitor: the metric; a lower loss is better, a higher value of any other metric is better. None: the last epoch
            is the best, and only that one is saved.
        resumed: the checkpoint that is resumed, if any.
    """

    def __init__(self, folder: Path, monitor: str | None, resumed: Path | None = None) -> None:
        mode = direction(monitor) if monitor else "min"
        super().__init__(dirpath=folder, filename="best", monitor=monitor, mode=mode, **AT_EPOCH_END)
        self.resumed_best = resumed.parent / "best.ckpt" if resumed else None
        self.loss_name = f"{monitor.partition('/')[0]}/loss" if monitor else None
        self.best_loss: float | None = None  # that of the best epoch; None if it is not known

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the last epoch for the best if the classifier monitors nothing, as without a val split."""
        if isinstance(pl_module, TransferClassifier) and pl_module.monitor is None:
            self.monitor = self.loss_name = None
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch if it is the best so far, which without a monitor only the last one is known to be."""
        if self.monitor or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Tell whether the epoch that has just ended is the best one; see the class for ties."""
        loss = trainer.callback_metrics.get(self.loss_name) if self.loss_name else None
        best = super().check_monitor_top_k(trainer, current)
        if not best and current is not None and loss is not None and self.best_loss is not None:
            tie = torch.equal(current, torch.as_tensor(self.best_model_score, device=current.device))
            best = trainer.strategy.reduce_boolean_decision(tie and float(loss) < self.best_loss)
        if best:
            self.best_loss = None if loss is None else float(loss)
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint, including the loss of the best epoch."""
        return {**super().state_dict(), "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint of the resumed run into this run's folder, and restore its score.

        Raises:
            DiskError: the disk is full.
        """
        source = self.resumed_best
        if source is None or not source.is_file():
            if self.monitor is None:
                return
            log.warning("%s does not exist: only epochs from now on can become the best checkpoint", source)
            return
        best = Path(str(self.dirpath), "best.ckpt")
        if best.resolve() != source.resolve():
            write_atomically(best, lambda path: shutil.copyfile(source, path), size=source.stat().st_size)
        score = state_dict["best_model_score"]
        paths = {
            "dirpath": str(self.dirpath),
            "best_model_path": str(best),
            "best_k_models": {str(best): score},
            "kth_best_model_path": str(best),
            "kth_value": score,
        }
        super().load_state_dict({**state_dict, **paths})
        # Checkpoints of earlier versions have none: their best epoch stays the best until the metric improves.
        self.best_loss = state_dict.get("best_loss")


def load_checkpoint(path: str | Path) -> TransferClassifier:
    """Load a classifier to train or evaluate with Lightning.

    To classify images, `headstart.load` is enough.

    Args:
        path: a checkpoint, a run folder or a model folder.

    Returns:
        The classifier in evaluation mode; its `hparams` hold class names and preprocessing.

    Raises:
        ModelError: there is no such file, or headstart did not write it.
    """
    return restore_classifier(read_artifact(path))


def restore_classifier(artifact: Artifact) -> TransferClassifier:
    """Build a classifier, in evaluation mode, from the contents of a checkpoint or model folder."""
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
def without_backbone(classifier: TransferClassifier, enabled: bool = True) -> Iterator[None]:
    """Remove a frozen backbone from the classifier inside the `with` block, where its batches are cached features.

    Checkpoints that are saved in the block hold the head only. Saving a large, unchanged backbone at the end of every
    epoch would take longer than the epoch. `complete_checkpoints` adds the backbone to them.

    Args:
        classifier: gets its backbone back at the end of the block.
        enabled: False does nothing.
    """
    backbone = classifier.backbone
    if enabled:
        classifier.backbone = nn.Identity()
    try:
        yield
    finally:
        classifier.backbone = backbone


@contextmanager
def head_only_checkpoints(folder: Path, classifier: TransferClassifier, enabled: bool) -> Iterator[None]:
    """Remove the backbone inside the `with` block, and add it to the run's checkpoints afterwards.

    The checkpoints are completed even if the block raises.
    """
    try:
        with without_backbone(classifier, enabled):
            yield
    finally:
        complete_checkpoints(folder / "checkpoints", classifier)


@rank_zero_only
def complete_checkpoints(folder: Path, classifier: TransferClassifier) -> None:
    """Add the backbone to all checkpoints of a folder that were saved without it.

    Checkpoints with another `backbone_sha256` stay as they are. A checkpoint that cannot be completed is logged as
    a warning. Only the process of rank 0 does this.
    """
    if classifier.hparams.get("backbone_sha256") is None:
        return  # the backbone was trained at least in part, so checkpoints contain it
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint = read_checkpoint(path)
            same = checkpoint["hyper_parameters"].get("backbone_sha256") == classifier.hparams.get("backbone_sha256")
            if same and not has_backbone(checkpoint):
                for name, value in classifier.backbone.state_dict(prefix=BACKBONE).items():
                    checkpoint["state_dict"][name] = value.cpu()
                write_checkpoint(path, checkpoint)
        except (HeadstartError, OSError, RuntimeError) as error:  # torch.save turns other errors into RuntimeError
            log.warning("%s holds the head only, and cannot be completed: %s", path, error)


def check_checkpoint(path: str | Path, classifier: TransferClassifier) -> int:
    """Check that this classifier can resume a checkpoint.

    Returns:
        The number of epochs that the checkpoint was trained for.

    Raises:
        ModelError: the file is no checkpoint of headstart, or a hyperparameter differs: the model, head, class names,
            split, frozen part, optimizer, schedule and so on. The batch size may differ.
    """
    checkpoint = read_checkpoint(path)
    saved = checkpoint["hyper_parameters"]
    for key, value in classifier.hparams.items():
        if key != "batch_size" and saved.get(key) != value:  # the batch size may change between epochs
            raise ModelError(
                f"{path} cannot be resumed: its {key} is {_format(saved.get(key))}, and this run's is "
                f"{_format(value)}. Resume with the settings of the config.yaml beside it, or start a new run "
                f"from its weights by model.weights={path}."
            )
    return int(checkpoint["epoch"]) + 1


def _format(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def restore_best(trainer: pl.Trainer, classifier: TransferClassifier) -> dict[str, int]:
    """Load the weights of the best checkpoint into the classifier, if the run has one.

    Returns:
        `epochs/run`, the number of epochs trained, and, if there is a best checkpoint, `epochs/best`, its epoch,
        counted from 1.
    """
    epochs, best = {"epochs/run": trainer.current_epoch}, trainer.checkpoint_callback
    if isinstance(best, BestCheckpoint) and best.best_model_path:
        checkpoint = read_checkpoint(best.best_model_path)
        classifier.on_load_checkpoint(checkpoint)
        classifier.load_state_dict(checkpoint["state_dict"])
        epochs["epochs/best"] = int(checkpoint["epoch"]) + 1
    return epochs
