"""Evaluation of a trained model on labelled images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from torch import Tensor, nn

from headstart.cache.build import sees_all_images
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.features import frozen_features
from headstart.config.compose import evaluation_config
from headstart.config.schema import CachedFeatures, Config, Features
from headstart.data.build import open_images, open_source
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import LabelledImages, Samples
from headstart.data.image_folder import imagefolder
from headstart.data.preprocessing import Preprocessing, evaluation_transform, tta_transform
from headstart.data.splits import split_sha256, split_table
from headstart.models.model_folder import Artifact, read_artifact
from headstart.runs.predictions import Evaluation, build_evaluation
from headstart.training.callbacks import ProgressBar
from headstart.training.checkpoints import restore_classifier, without_backbone
from headstart.training.classifier import TransferClassifier
from headstart.training.split_metrics import OutputCollector, compute_split_metrics
from headstart.training.trainer import build_trainer, quiet_lightning
from headstart.utils.errors import ConfigError, DataError

SPLIT_ORDER = ("test", "val", "train")  # the first of these that the data have is evaluated
VIEWS = {"flip": 2, "five": 5}  # views of an image in test-time augmentation


def evaluate(path: str | Path, *arguments: str | Path, split: str | None = None, tta: str | None = None) -> Evaluation:
    """Evaluate a run folder, a model folder or a checkpoint on labelled images.

    Arguments, result and errors are those of `Model.evaluate`, and ModelError if the model cannot be loaded.
    """
    artifact = read_artifact(path)
    folder, overrides = _parse_arguments([str(argument) for argument in arguments])
    config, images = _open_data(artifact, folder, overrides)
    quiet_lightning()
    classifier = restore_classifier(artifact)
    chosen, samples, notes = _select_samples(images, split, classifier.class_names, split_free=folder is not None)
    temperature = artifact.description.get("temperature", 1.0)
    data = _data_module(chosen, samples, classifier, tta, config)
    collector = OutputCollector()
    trainer = _evaluation_trainer(collector, config)
    if tta:
        each_view, views = nn.Flatten(0, 1), nn.Unflatten(0, (-1, VIEWS[tta]))
        classifier.backbone = nn.Sequential(each_view, classifier.backbone, views)
        classifier.head = MultiViewHead(classifier.head, temperature)
    batches = (None if tta else cached_features(classifier, data, trainer, config.features)) or data
    with without_backbone(classifier, batches is not data):
        metrics, outputs = compute_split_metrics(trainer, classifier, batches, collector, collected=(chosen,))
    return build_evaluation(
        chosen,
        samples,
        outputs[chosen],
        metrics,
        class_names=classifier.class_names,
        temperature=temperature,
        name=_name(artifact, chosen if tta is None else f"{chosen}-{tta}", folder, overrides),
        run_folder=artifact.run_folder,
        notes=notes,
    )


# --- data ----------------------------------------------------------------------------------------------------


def _parse_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the folder of images, if one is named, and the overrides, which contain an equals sign."""
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_dir()]
    folders = [Path(argument) for argument in arguments if argument not in overrides]
    if len(folders) > 1:
        named = " ".join(map(str, folders))
        raise ConfigError(f"{named}: name one folder of images, with a folder for each class in it.")
    data_overrides = [override for override in overrides if override.startswith(("data=", "data.root="))]
    if folders and data_overrides:
        raise ConfigError(f"{folders[0]} and {data_overrides[0]}: name one of them, they are different data.")
    return (folders[0] if folders else None), overrides


def _open_data(artifact: Artifact, folder: Path | None, overrides: Sequence[str]) -> tuple[Config, LabelledImages]:
    """Open the images of a folder, of the overrides' `data=`, or of the model's own run."""
    other_data = folder is not None or any(override.startswith("data=") for override in overrides)
    if artifact.run_folder is None and not other_data:
        raise ConfigError(
            f"{artifact.path} lies in no run folder, so its own data are not known. Name a folder with a folder for "
            f"each class in it, or data=... as for train.py."
        )
    config = evaluation_config(artifact.run_folder, overrides)
    if folder:
        return config, imagefolder(folder, min_classes=1)
    if other_data:
        return config, open_source(config.data.source, **config.data.of_source())
    images = open_images(config.data)
    check_split(images, artifact)
    return config, images


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


def _select_samples(
    images: LabelledImages, split: str | None, class_names: Sequence[str], *, split_free: bool
) -> tuple[str, Samples, list[str]]:
    """Return the split to evaluate, its images with the model's labels, and notes on both."""
    splits = images.splits
    if split_free and set(splits) == {"train"}:
        splits = {"test": splits["train"]}  # a folder without splits is evaluated as a test split
    chosen = split or next(name for name in SPLIT_ORDER if name in splits)
    if chosen not in splits:
        raise DataError(f"these data have no {chosen} split; there are {', '.join(splits)}.")
    samples, notes = match_classes(splits[chosen], images.class_names, class_names)
    if split is None and chosen != "test":
        notes.append(f"there is no test split: these metrics are of {chosen}")
    return chosen, samples, [*images.notes, *notes]


def match_classes(
    samples: Samples, data_classes: Sequence[str], model_classes: Sequence[str]
) -> tuple[Samples, list[str]]:
    """Return the images whose class the model knows, with its labels; and notes on unknown and missing classes.

    Raises:
        DataError: the model knows none of the classes.
    """
    indices = {name: index for index, name in enumerate(model_classes)}
    labels = np.array([indices.get(name, -1) for name in data_classes], dtype=np.int64)[samples.labels]
    notes = []
    unknown = sorted({data_classes[label] for label in np.unique(samples.labels)} - set(model_classes))
    if unknown:
        count = int((labels < 0).sum())
        notes.append(f"the model does not know {_list_names(unknown)}: {count} images of these classes are left out")
    if (labels < 0).all():
        raise DataError(
            f"the model knows none of the classes {_list_names(unknown)}; it knows {_list_names(model_classes)}. "
            f"Classes are matched by name: rename the folders or labels."
        )
    missing = [name for name, index in indices.items() if index not in labels]
    if missing:
        notes.append(f"the data have no image of {_list_names(missing)}, which the model knows")
    return replace(samples, labels=labels).take(np.flatnonzero(labels >= 0)), notes


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _name(artifact: Artifact, split: str, folder: Path | None, overrides: Sequence[str]) -> str:
    """Return the name of the evaluation's folder, which differs between checkpoints, data sets and splits."""
    parts = [override.partition("=")[2] for override in overrides if override.startswith("data=")]
    if folder:
        path = folder.resolve()
        parts = [path.name, hashlib.sha256(os.fsencode(path)).hexdigest()[:6]]
    return "-".join([*parts, split, *([] if artifact.path.is_dir() else [artifact.path.stem])])


# --- computation ---------------------------------------------------------------------------------------------


def _data_module(
    split: str, samples: Samples, classifier: TransferClassifier, tta: str | None, config: Config
) -> ImageDataModule:
    preprocessing = Preprocessing.from_dict(classifier.hparams["preprocessing"])
    transform = tta_transform(preprocessing, tta) if tta else evaluation_transform(preprocessing)
    return ImageDataModule(
        {split: samples},
        training=transform,
        evaluation=transform,
        batch_size=config.data.first_batch_size,
        evaluation_batch_size=config.data.evaluation_batch_size,
        num_workers=config.data.num_workers,
    )


def _evaluation_trainer(keep: OutputCollector, config: Config) -> pl.Trainer:
    """Build a Trainer with one process on one device: each image is counted once, in a known order."""
    bars = [ProgressBar(leave=False)] if config.trainer.enable_progress_bar else []
    single = {"devices": 1, "num_nodes": 1, "strategy": "auto", "fast_dev_run": False}
    limits = dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 1.0)
    return build_trainer([keep, *bars], [], asdict(config.trainer) | single | limits)


def cached_features(
    classifier: TransferClassifier, data: ImageDataModule, trainer: pl.Trainer, settings: Features
) -> FeatureDataModule | None:
    """Return the features of the frozen backbone, from the cache where possible, as in training.

    It is None if the backbone is not frozen, caching is off, or the features cannot be cached.
    """
    frozen = classifier.hparams["freeze"] is True
    if not (frozen and isinstance(settings, CachedFeatures) and sees_all_images(trainer)):
        return None
    head = next(layer for layer in classifier.head.modules() if isinstance(layer, nn.Linear))
    features = frozen_features(
        classifier.backbone,
        data,
        trainer,
        num_features=head.in_features,
        description={name: classifier.hparams[name] for name in ("model", "backbone_sha256")},
        engine=settings.engine,
        views=1,
        max_gb=settings.max_gb,
    )
    return features.data if features else None


class MultiViewHead(nn.Module):
    """A head that averages the predicted probabilities of several views, with temperature scaling."""

    def __init__(self, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, views, num_features) to (batch, classes): logits of the mean probabilities.

        The logits are not divided by the temperature, like those of other heads.
        """
        log_probabilities: Tensor = (self.head(features).float() / self.temperature).log_softmax(dim=-1)
        return self.temperature * (log_probabilities.logsumexp(dim=1) - math.log(features.shape[1]))
