"""Which strategy of fine-tuning suits the images: what `finetune=auto` is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from headstart.artifact import read_checkpoint
from headstart.backbones import Backbone
from headstart.data.module import ImageDataModule
from headstart.errors import ModelError
from headstart.features.digests import module_sha256
from headstart.features.frozen import frozen_features

FROZEN, SCRATCH = "frozen", "scratch"  # besides the names of strategies
PROBED = 2000  # images at most, which the backbone sees once: a share that they measure is right to two hundredths
MAX_GB = 20  # of the cache, as in conf/features/auto.yaml; these few features take a thousandth
HELD_OUT = 0.25  # of them, to be predicted
# Where the lines between the cases are. The cases are those of CS231n's notes, which give no numbers. The last two are
# careful, as pretrained weights hardly ever hurt (He et al., arXiv:1811.08883, need ten thousand images to do as well).
FEW = 200  # images a class
SIMILAR = 0.8  # of the way from guessing to no mistake
USELESS, MANY = 0.1, 1000


@dataclass(frozen=True)
class Choice:
    """A strategy, and why.

    Attributes:
        strategy: FROZEN, SCRATCH, or a name of `conf/finetune/`.
        images: training images a class, on average.
        similarity: of a linear probe on the pretrained features: 0 is guessing, 1 is no mistake.
    """

    strategy: str
    images: float
    similarity: float

    def __str__(self) -> str:
        few = "few" if self.images < FEW else "many"
        how = "tell the classes apart well" if self.similarity >= SIMILAR else "tell the classes apart badly"
        then = {
            FROZEN: "the head alone is trained (freeze=true)",
            SCRATCH: "everything is trained, from random weights (model.weights=null)",
        }.get(self.strategy, f"finetune={self.strategy}")
        return (
            f"finetune=auto: {few} images, {self.images:,.0f} a class, and pretrained features that {how}: a linear "
            f"probe gets {self.similarity:.0%} of the way from guessing to no mistake\n"
            f"finetune=auto: so {then}. Another choice: finetune=NAME, or freeze=true"
        )


def chosen(images: float, similarity: float) -> Choice:
    """The strategy for so many images a class and features of this similarity."""
    if similarity < USELESS and images >= MANY:
        strategy = SCRATCH
    elif similarity >= SIMILAR:
        strategy = FROZEN if images < FEW else "head_then_full"
    else:
        strategy = "gradual" if images < FEW else "head_then_full"
    return Choice(strategy, images, similarity)


def choose(
    backbone: Backbone,
    data: ImageDataModule,
    trainer: pl.Trainer,
    *,
    checkpoint: str | Path | None,
    seed: int,
    show_progress: bool,
) -> Choice:
    """Looks at the images with the pretrained backbone, and chooses; a run that is resumed keeps its choice.

    Args:
        backbone: with its weights; comes back as it was. Its features are kept in the cache, where a head finds them.
        data: of whose training images some are looked at.
        trainer: that will train.
        checkpoint: that is resumed, if any.
        seed: of which images are looked at, and held out.
        show_progress: show bars.

    Raises:
        ModelError: the checkpoint cannot be read, or is of a run with another `finetune`.
    """
    if checkpoint is not None:
        theirs = read_checkpoint(checkpoint)["hyper_parameters"].get("chosen")
        if theirs is None:
            raise ModelError(
                f"{checkpoint} is not of a run with finetune=auto: resume it with the finetune it began with."
            )
        return Choice(**theirs)
    labels = data.splits["train"].labels
    some = some_of(data, seed)
    module = backbone.module
    was_training = [inner for inner in module.modules() if inner.training]
    found = frozen_features(
        module.eval(),
        some,
        num_features=backbone.num_features,
        description={"model": backbone.description, "backbone_sha256": module_sha256(module)},
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin,
        engine="auto",
        views=1,
        max_gb=MAX_GB,
        show_progress=show_progress,
    )
    for inner in was_training:
        inner.training = True
    assert found is not None
    batches = [features for features, _ in found.data.evaluation_dataloader("train")]
    told = similarity(torch.cat(batches), some.splits["train"].labels, seed)
    return chosen(len(labels) / len(np.unique(labels)), told)


def some_of(data: ImageDataModule, seed: int) -> ImageDataModule:
    """Training images in place of all splits, `PROBED` of them at most, without augmentation."""
    train = data.splits["train"]
    some = np.sort(np.random.default_rng(seed).permutation(len(train))[:PROBED])
    return ImageDataModule(
        {"train": train.take(some)},
        training=data.evaluation,
        evaluation=data.evaluation,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
    )


def similarity(features: Tensor, labels: NDArray[np.int64], seed: int) -> float:
    """How well a linear probe on some of the images tells the others apart, between guessing and no mistake.

    Args:
        features: of the images, of shape (images, width).
        labels: theirs, of shape (images,).
        seed: of which are held out.

    Returns:
        Cohen's kappa against always naming the largest class, at least 0 and at most 1; 0 if there are too few images.
    """
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    often = counts[place] >= 2  # one to learn from, one to tell
    if often.sum() < 4 or len(classes) < 2 or int(often.sum() * HELD_OUT) < (counts >= 2).sum():
        return 0.0
    learned, told, learned_labels, told_labels = train_test_split(
        features.float().cpu().numpy()[often],
        labels[often],
        test_size=HELD_OUT,
        stratify=labels[often],
        random_state=seed,
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    right = float((probe.fit(learned, learned_labels).predict(told) == told_labels).mean())
    guessed = float(np.bincount(told_labels).max() / len(told_labels))
    return max(0.0, (right - guessed) / (1 - guessed))
