"""Fine-tuning strategy for `finetune=auto`: chosen by how many images there are and how well features separate them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.cache.features import backbone_features
from headstart.data.datamodule import ImageDataModule
from headstart.models.backbone import Backbone
from headstart.models.model_folder import read_checkpoint
from headstart.training.tuning.leave_one_out import leave_one_out
from headstart.utils.errors import ModelError

FROZEN, SCRATCH = "frozen", "scratch"  # the choices that are no name of `conf/finetune/`
PROBED = 2000  # images for the linear probe; enough to measure an accuracy to within 0.02
LEAST = 4  # at least so many of these images per class, however many classes there are
OTHERS = 5  # images outside of the largest class: with fewer, one image moves the similarity by more than 0.2
# Thresholds between the cases. The cases are those of the CS231n notes, which give no numbers. The last two thresholds
# are conservative, as pretrained weights hardly ever hurt: training from scratch needs ten thousand images to do as
# well (He et al., arXiv:1811.08883).
FEW = 200  # images per class: with 122, the head alone was best, with 740, the whole network (benchmarks/README.md)
SIMILAR = 0.8  # similarity; see `similarity`
USELESS, MANY = 0.1, 1000


@dataclass(frozen=True)
class StrategyChoice:
    """A fine-tuning strategy, and the measurements that it was chosen by.

    Attributes:
        strategy: `FROZEN`, `SCRATCH`, or a name of `conf/finetune/`.
        images: the mean number of training images per class.
        similarity: how well a linear probe on the pretrained features separates the classes, from 0 (guessing) to 1 (no
            errors); None if there are too few images to measure it. See the function `similarity`.
    """

    strategy: str
    images: float
    similarity: float | None

    @property
    def metrics(self) -> dict[str, float]:
        """Return `auto/images_a_class` and, if it was measured, `auto/similarity`."""
        measured = {} if self.similarity is None else {"auto/similarity": self.similarity}
        return {"auto/images_a_class": self.images, **measured}

    def __str__(self) -> str:
        amount = "few" if self.images < FEW else "many"
        decision = {
            FROZEN: "the head alone is trained (freeze=true)",
            SCRATCH: "everything is trained, from random weights (model.weights=null)",
        }.get(self.strategy, f"finetune={self.strategy}")
        features = "too few to measure how well the pretrained features separate the classes"
        if self.similarity is not None:
            well = "well" if self.similarity >= SIMILAR else "badly"
            features = (
                f"and pretrained features that separate the classes {well}: "
                f"a linear probe gets {self.similarity:.0%} of the way from guessing to no errors"
            )
        return (
            f"finetune=auto: {amount} images, {self.images:,.0f} per class, {features}\n"
            f"finetune=auto: so {decision}. To choose yourself: finetune=NAME, or freeze=true"
        )


def decide(images: float, similarity: float | None) -> StrategyChoice:
    """Choose a strategy by the number of images per class and the similarity."""
    if similarity is not None and similarity < USELESS and images >= MANY:
        strategy = SCRATCH
    elif images >= FEW:
        strategy = "head_then_full"
    else:
        strategy = FROZEN if similarity is None or similarity >= SIMILAR else "gradual"
    return StrategyChoice(strategy, images, similarity)


def choose_strategy(
    backbone: Backbone,
    datamodule: ImageDataModule,
    trainer: pl.Trainer,
    *,
    checkpoint: str | Path | None,
    seed: int,
    max_gb: float,
) -> StrategyChoice:
    """Choose a strategy by training a linear probe on pretrained features of some training images.

    A resumed run keeps the choice recorded in its checkpoint.

    Args:
        backbone: the backbone with its pretrained weights, which is left as it was. Its features are cached, so that
            training a head can reuse them.
        datamodule: the images; the probe uses some of its training split.
        trainer: the Trainer of the run; see `frozen_features`.
        checkpoint: the checkpoint that is resumed, if any.
        seed: seeds the choice of the images for the probe.
        max_gb: the largest size of the feature cache, in gigabytes (10^9 bytes).

    Returns:
        The strategy, with the measurements that it was chosen by.

    Raises:
        ModelError: the checkpoint cannot be read, or is of a run with another `finetune`.
    """
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint)["hyper_parameters"].get("chosen")
        if saved is None:
            raise ModelError(
                f"{checkpoint} is not of a run with finetune=auto: resume it with the finetune that it started with."
            )
        return StrategyChoice(**saved)
    labels = datamodule.splits["train"].labels
    subset = balanced_subset(datamodule, seed)
    features = backbone_features(backbone, subset, trainer, engine="auto", max_gb=max_gb)
    assert features is not None
    rows = torch.cat([batch for batch, _ in features.evaluation_dataloader("train")])
    return decide(len(labels) / len(np.unique(labels)), similarity(rows, subset.splits["train"].labels))


def balanced_subset(datamodule: ImageDataModule, seed: int) -> ImageDataModule:
    """Select a random subset of the training images, balanced over the classes.

    Returns:
        A data module with the subset as its only split, "train", without augmentation. It holds `PROBED` images divided
        equally among the classes, but at least `LEAST` per class; of smaller classes, all images.
    """
    train = datamodule.splits["train"]
    shuffled = np.random.default_rng(seed).permutation(len(train))
    by_class = shuffled[np.argsort(train.labels[shuffled], kind="stable")]
    classes, starts = np.unique(train.labels[by_class], return_index=True)
    most = max(LEAST, PROBED // len(classes))
    indices = np.sort(np.concatenate([of_class[:most] for of_class in np.split(by_class, starts[1:])]))
    return ImageDataModule(
        {"train": train.take(indices)},
        training=datamodule.evaluation,
        evaluation=datamodule.evaluation,
        num_workers=datamodule.num_workers,
    )


def similarity(features: Tensor, labels: NDArray[np.int64]) -> float | None:
    """Measure how well a linear probe on the features predicts the class of an image that it has not seen.

    The probe is ridge regression, and each image is left out in turn; see `leave_one_out`.

    Args:
        features: features of the images, shape (images, num_features).
        labels: their int64 labels, shape (images,).

    Returns:
        The accuracy, scaled as by `scaled_accuracy`. None if fewer than two classes have two images, or fewer than
        `OTHERS` images are not of the largest class.
    """
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    usable = counts[index] >= 2  # one image to fit to, one to answer
    if int((counts >= 2).sum()) < 2:
        return None
    _, classes = np.unique(labels[usable], return_inverse=True)
    if len(classes) - int(counts.max()) < OTHERS:
        return None
    answers = leave_one_out(features.float().cpu().numpy()[usable], classes, None).argmax(axis=1)
    return scaled_accuracy(float((answers == classes).mean()), classes)


def scaled_accuracy(accuracy: float, labels: NDArray[np.int64]) -> float:
    """Return an accuracy on a scale where always giving the largest class is 0 and no errors is 1; at least 0."""
    guessing = float(np.bincount(labels).max() / len(labels))
    return max(0.0, (accuracy - guessing) / (1 - guessing))
