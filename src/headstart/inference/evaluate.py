"""Evaluation of a trained model on labelled images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from torch import Tensor, nn

from headstart.cache.build import sees_all_images
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import frozen_features
from headstart.config.compose import evaluation_config
from headstart.config.schema import CachedFeatures, Features
from headstart.data.build import open_images, open_source
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.image_folder import imagefolder
from headstart.data.preprocessing import Preprocessing, evaluation_transform, several_views
from headstart.data.splits import split_sha256, split_table
from headstart.models.model_folder import Artifact, read_artifact
from headstart.runs.predictions import Evaluation, image_names
from headstart.training.callbacks import ProgressBar
from headstart.training.checkpoints import restore_classifier, without_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.split_metrics import OutputCollector, compute_split_metrics
from headstart.training.trainer import build_trainer, quiet_lightning
from headstart.utils.errors import ConfigError, DataError

FIRST = ("test", "val", "train")  # the first of these that the data have is evaluated


def evaluate(path: str | Path, *words: str | Path, split: str | None = None, tta: str | None = None) -> Evaluation:
    """Evaluate a trained model on labelled images, with classes matched by name.

    Args:
        path: a run folder, a model folder or a checkpoint.
        *words: a folder with a subfolder for each class; or overrides as for train.py, for data (`data=stl10
            data.root=FOLDER`) and hardware (`trainer=gpu`). Without a folder or `data=`, the data of the model's run
            are used with the same splits; `data.root=` sets their present path. Other data are not split: every image
            of their own test, val or train split is evaluated.
        split: "test", "val" or "train"; None takes the first of these that the data have.
        tta: test-time augmentation: "flip" or "five" averages the probabilities of several views, as in
            `Model.predict`.

    Returns:
        Metrics, labels and model outputs of the split.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: the model lies in no run folder and no data are named, or an override does not fit.
        DataError: the images cannot be used, the split does not exist, or the model knows none of the classes.
    """
    artifact = read_artifact(path)
    folder, settings = _folder_and_words([str(word) for word in words])
    others = folder is not None or any(word.startswith("data=") for word in settings)
    if artifact.run_folder is None and not others:
        raise ConfigError(
            f"{path} lies in no run folder, so its own data are not known. Name a folder with a folder for each class "
            f"in it, or data=... as for train.py."
        )
    config = evaluation_config(artifact.run_folder, settings)
    if folder:
        images = imagefolder(folder, least=1)
    elif others:
        images = open_source(config.data.source, **config.data.of_source())
    else:
        images = open_images(config.data)
        check_split(images, artifact)
    splits = images.splits
    if folder and set(splits) == {"train"}:
        splits = {"test": splits["train"]}  # a folder without splits is evaluated as a test split
    quiet_lightning()
    classifier = restore_classifier(artifact)
    chosen = split or next(name for name in FIRST if name in splits)
    if chosen not in splits:
        raise DataError(f"these data have no {chosen} split; there are {', '.join(splits)}.")
    samples, notes = match_classes(splits[chosen], images.class_names, classifier.class_names)
    notes = [*images.notes, *notes]
    if split is None and chosen != "test":
        notes.append(f"there is no test split: these figures are of {chosen}")

    preprocessing = Preprocessing.from_dict(classifier.hparams["preprocessing"])
    transform = several_views(preprocessing, tta) if tta else evaluation_transform(preprocessing)
    temperature = artifact.description.get("temperature", 1.0)
    data = ImageDataModule(
        {chosen: samples},
        training=transform,
        evaluation=transform,
        batch_size=config.data.first_batch_size,
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
    )
    collector = OutputCollector()
    bars = [ProgressBar(leave=False)] if config.trainer.enable_progress_bar else []
    # One process on one device: each image is counted once, in a known order.
    whole = {"devices": 1, "num_nodes": 1, "strategy": "auto", "fast_dev_run": False, "limit_test_batches": 1.0}
    arguments = asdict(config.trainer) | whole | {"limit_train_batches": 1.0, "limit_val_batches": 1.0}
    trainer = build_trainer([collector, *bars], [], arguments)
    if tta:
        classifier.backbone, classifier.head = (
            OfEachView(classifier.backbone),
            MeanOfViews(classifier.head, temperature),
        )
    batches = (None if tta else features_of(classifier, data, trainer, config.features)) or data
    with without_backbone(classifier, batches is not data):
        figures, outputs = compute_split_metrics(trainer, classifier, batches, collector, collected=(chosen,))
    return Evaluation(
        name=_name(artifact, chosen if tta is None else f"{chosen}-{tta}", folder, settings),
        split=chosen,
        run_folder=artifact.run_folder,
        metrics={**figures, "data/num_classes": len(classifier.class_names), f"data/{chosen}_size": len(samples)},
        notes=notes,
        class_names=classifier.class_names,
        images=image_names(samples),
        labels=samples.labels,
        outputs=outputs[chosen],
        temperature=temperature,
    )


class OfEachView(nn.Module):
    """A backbone that is applied to several views of each image.

    Args:
        backbone: a module from (batch, 3, height, width) to (batch, num_features).
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, views: Tensor) -> Tensor:
        """Map (batch, views, 3, height, width) to features of shape (batch, views, num_features)."""
        features: Tensor = self.backbone(views.flatten(0, 1))
        return features.view(*views.shape[:2], -1)


class MeanOfViews(nn.Module):
    """A head that averages the predicted probabilities of several views.

    Args:
        head: a module from features to logits, along the last dimension.
        temperature: the divisor of the logits before the softmax.
    """

    def __init__(self, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, views, num_features) to (batch, classes): logits of the mean probabilities.

        The logits are not divided by the temperature, like those of other heads.
        """
        logarithms: Tensor = (self.head(features).float() / self.temperature).log_softmax(dim=-1)
        return self.temperature * (logarithms.logsumexp(dim=1) - math.log(features.shape[1]))


def _folder_and_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split the arguments into the folder of images, if any, and the overrides, which contain an equals sign.

    Raises:
        ConfigError: several folders are named, or a folder and other data.
    """
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in words if word not in settings]
    if len(folders) > 1:
        named = " ".join(map(str, folders))
        raise ConfigError(f"{named}: name one folder of images, with a folder for each class in it.")
    about_data = [word for word in settings if word.startswith(("data=", "data.root="))]
    if folders and about_data:
        raise ConfigError(f"{folders[0]} and {about_data[0]}: name one of them, they are different data.")
    return (folders[0] if folders else None), settings


def _name(artifact: Artifact, split: str, folder: Path | None, words: Sequence[str]) -> str:
    """Return the name of the evaluation's folder, which differs between checkpoints, data sets and splits."""
    parts = [word.partition("=")[2] for word in words if word.startswith("data=")]
    if folder:
        place = str(folder.resolve())
        parts = [folder.resolve().name, hashlib.sha256(os.fsencode(place)).hexdigest()[:6]]
    return "-".join([*parts, split, *([] if artifact.path.is_dir() else [artifact.path.stem])])


def check_split(images: LabelledImages, artifact: Artifact) -> None:
    """Check that the images have the same splits as in training.

    Raises:
        DataError: they do not, so that some of the test images may have been trained on.
    """
    if split_sha256(split_table(images)) != artifact.description.get("split"):
        raise DataError(
            f"these are not the images, labels and splits that {artifact.path} was trained with, which split.csv in "
            f"its run folder lists: images that it was trained on could count as a test. Restore them, or name the "
            f"folder of other images."
        )


def match_classes(samples: Samples, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Samples, list[str]]:
    """Relabel images by class name.

    Args:
        samples: images with the labels of the data.
        theirs: the data's class names, in the order of their labels.
        ours: the model's class names, in the order of its logits.

    Returns:
        The images whose class the model knows, with the model's labels; and notes on unknown and missing classes.

    Raises:
        DataError: the model knows none of the classes.
    """
    place = {name: index for index, name in enumerate(ours)}
    labels = np.array([place.get(name, -1) for name in theirs], dtype=np.int64)[samples.labels]
    notes = []
    unknown = sorted({theirs[label] for label in np.unique(samples.labels)} - set(ours))
    if unknown:
        count = int((labels < 0).sum())
        notes.append(f"the model does not know {_named(unknown)}: {count} images of these classes are left out")
    if (labels < 0).all():
        raise DataError(
            f"the model knows none of the classes {_named(unknown)}; it knows {_named(ours)}. Classes are matched by "
            f"name: rename the folders or labels."
        )
    lacking = [name for name, index in place.items() if index not in labels]
    if lacking:
        notes.append(f"the data have no image of {_named(lacking)}, which the model knows")
    return Samples(samples.images, labels, samples.names).take(np.flatnonzero(labels >= 0)), notes


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def features_of(
    classifier: TransferClassifier, data: ImageDataModule, trainer: pl.Trainer, settings: Features
) -> FeatureDataModule | None:
    """Return the features of the frozen backbone, read from the cache where possible, as in training.

    Returns:
        A data module of features; None if the backbone is not frozen, caching is off, or the features cannot be cached.
    """
    frozen = classifier.hparams["freeze"] is True
    if not (frozen and isinstance(settings, CachedFeatures) and sees_all_images(trainer)):
        return None
    head = next(layer for layer in classifier.head.modules() if isinstance(layer, nn.Linear))
    found = frozen_features(
        classifier.backbone,
        data,
        num_features=head.in_features,
        description={name: classifier.hparams[name] for name in ("model", "backbone_sha256")},
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin,
        engine=settings.engine,
        views=1,
        max_gb=settings.max_gb,
        show_progress=bool(trainer.progress_bar_callback),
    )
    return found.data if found else None
