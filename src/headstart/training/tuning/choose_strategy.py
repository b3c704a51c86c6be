"""Which strategy of fine-tuning suits the images: what `finetune=auto` is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.cache.features import frozen_features
from headstart.data.datamodule import ImageDataModule
from headstart.models.backbone import Backbone
from headstart.models.model_folder import read_checkpoint
from headstart.utils.errors import ModelError
from headstart.utils.hashing import module_sha256

FROZEN, SCRATCH = "frozen", "scratch"  # besides the names of strategies
PROBED = 2000  # images, which the backbone sees once: a share that they measure is right to two hundredths
LEAST = 4  # of them a class, however many classes there are
HELD_OUT = 0.25  # of them, to be predicted
# Where the lines between the cases are. The cases are those of CS231n's notes, which give no numbers. The last two are
# careful, as pretrained weights hardly ever hurt (He et al., arXiv:1811.08883, need ten thousand images to do as well).
FEW = 200  # images a class: of 122 the head alone was best, of 740 the whole network (benchmarks/README.md)
SIMILAR = 0.8  # of the way from guessing to no mistake
USELESS, MANY = 0.1, 1000


@dataclass(frozen=True)
class Choice:
    """A strategy, and why.

    Attributes:
        strategy: FROZEN, SCRATCH, or a name of `conf/finetune/`.
        images: training images a class, on average.
        similarity: of a linear probe on the pretrained features: 0 is guessing, 1 is no mistake; None where there are
            too few images to hold any out.
    """

    strategy: str
    images: float
    similarity: float | None

    @property
    def metrics(self) -> dict[str, float]:
        """`auto/images_a_class` and, where it was measured, `auto/similarity`."""
        measured = {} if self.similarity is None else {"auto/similarity": self.similarity}
        return {"auto/images_a_class": self.images, **measured}

    def __str__(self) -> str:
        few = "few" if self.images < FEW else "many"
        then = {
            FROZEN: "the head alone is trained (freeze=true)",
            SCRATCH: "everything is trained, from random weights (model.weights=null)",
        }.get(self.strategy, f"finetune={self.strategy}")
        features = "too few to try the pretrained features on"
        if self.similarity is not None:
            well = "well" if self.similarity >= SIMILAR else "badly"
            features = (
                f"and pretrained features that tell the classes apart {well}: "
                f"a linear probe gets {self.similarity:.0%} of the way from guessing to no mistake"
            )
        return (
            f"finetune=auto: {few} images, {self.images:,.0f} a class, {features}\n"
            f"finetune=auto: so {then}. Another choice: finetune=NAME, or freeze=true"
        )


def chosen(images: float, similarity: float | None) -> Choice:
    """The strategy for so many images a class and features of this similarity."""
    if similarity is None:
        strategy = FROZEN if images < FEW else "head_then_full"
    elif similarity < USELESS and images >= MANY:
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
    max_gb: float,
    show_progress: bool,
) -> Choice:
    """Looks at the images with the pretrained backbone, and chooses; a run that is resumed keeps its choice.

    Args:
        backbone: with its weights; comes back as it was. Its features are kept in the cache, where a head finds them.
        data: of whose training images some are looked at.
        trainer: that will train.
        checkpoint: that is resumed, if any.
        seed: of which images are looked at, and held out.
        max_gb: gigabytes (10^9 bytes) that the cache of features may have.
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
        max_gb=max_gb,
        show_progress=show_progress,
    )
    for inner in was_training:
        inner.training = True
    assert found is not None
    batches = [features for features, _ in found.data.evaluation_dataloader("train")]
    told = similarity(torch.cat(batches), some.splits["train"].labels, seed)
    return chosen(len(labels) / len(np.unique(labels)), told)


def some_of(data: ImageDataModule, seed: int) -> ImageDataModule:
    """Some training images of each class in place of all splits, without augmentation."""
    train = data.splits["train"]
    classes, place = np.unique(train.labels, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(train))
    in_classes = shuffled[np.argsort(place[shuffled], kind="stable")]
    starts = np.searchsorted(place[in_classes], np.arange(len(classes)))
    rank = np.arange(len(train)) - starts[place[in_classes]]  # of each image in its class
    some = np.sort(in_classes[rank < max(LEAST, PROBED // len(classes))])
    return ImageDataModule(
        {"train": train.take(some)},
        training=data.evaluation,
        evaluation=data.evaluation,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
    )


def similarity(features: Tensor, labels: NDArray[np.int64], seed: int) -> float | None:
    """How well a linear probe on some of the images tells the others apart, between guessing and no mistake.

    Args:
        features: of the images, of shape (images, width).
        labels: theirs, of shape (images,).
        seed: of which are held out.

    Returns:
        How much of the way it gets from always naming the largest class, which is 0, to no mistake, which is 1; None if
        there are not two classes with two images each, or all that are held out are of one.
    """
    # Late: no other run needs them, and they take 0.3 s.
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    often = counts[place] >= 2  # one to learn from, one to tell
    several = int((counts >= 2).sum())
    if several < 2:
        return None
    learned, told, learned_labels, told_labels = train_test_split(
        features.float().cpu().numpy()[often],
        labels[often],
        test_size=max(several, round(HELD_OUT * int(often.sum()))),
        stratify=labels[often],
        random_state=seed,
    )
    guessed = float(np.bincount(told_labels).max() / len(told_labels))
    if guessed == 1:
        return None
    # In closed form, whatever the number of classes; its penalty is the best of six at telling single images left out.
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 6)))
    right = float((probe.fit(learned, learned_labels).predict(told) == told_labels).mean())
    return max(0.0, (right - guessed) / (1 - guessed))
