"""Features of a frozen backbone for all images of a data module: read from the cache, or computed if missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.cache.disk import GIGABYTE, writable_cache_folder
from headstart.cache.engines import Network, check_engine, has_onnx
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.fill import Digests, Request, RowCache, image_digests, obtain_rows
from headstart.cache.fingerprints import code_sha256, fingerprint
from headstart.cache.segments import Rows
from headstart.data.datamodule import ImageDataModule
from headstart.models.backbone import Backbone
from headstart.models.freezing import evaluation_mode
from headstart.utils.errors import ModelError
from headstart.utils.hashing import module_sha256
from headstart.utils.progress import shows_progress

log = logging.getLogger(__name__)
TOO_LARGE = (
    "the features take %.2g GB, more than features.max_gb=%.2g: the backbone runs again in every epoch. Raise "
    "features.max_gb, or lower features.views."
)


class FrozenFeatures(NamedTuple):
    """The features of a frozen backbone, which replace the images.

    Attributes:
        data: data module of the features.
        computed: number of rows (views of images) that this process has computed now.
        cached: number of rows that were cached, or that another process has computed in the meantime.
    """

    data: FeatureDataModule
    computed: int
    cached: int


def frozen_features(
    backbone: nn.Module,
    data: ImageDataModule,
    trainer: pl.Trainer,
    *,
    num_features: int,
    description: Mapping[str, Any],
    engine: str,
    views: int,
    max_gb: float,
    until_epoch: int | None = None,
) -> FrozenFeatures | None:
    """Return the features of a data module's images, after computing those that are not cached yet.

    Args:
        backbone: the backbone, completely frozen; it is moved to the CPU afterwards.
        data: the images.
        trainer: gives the device and the precision to compute with, and whether to show progress bars.
        num_features: width of the features.
        description: plain values that identify the network and its weights.
        engine: name of the engine; see `build_engine`.
        views: number of views of each training image; 1 without augmentation.
        max_gb: maximum size of the cached features in gigabytes (10^9 bytes).
        until_epoch: first epoch that trains on the images; see `FeatureDataModule`. If it is given, only the training
            and validation splits are computed. Their features stay in the CPU's memory, because the backbone needs the
            GPU's memory once it is unfrozen.

    Returns:
        The features, or None, with a warning, if they exceed `max_gb`.

    Raises:
        DataError: if an image cannot be read, or the disk is full.
        ModelError: if the backbone's features are not finite, or the engine's features differ from them.
        ConfigError: if the engine is not available here.
        ValueError: if part of the backbone is in training mode, so that features would depend on the batch.
    """
    if any(module.training for module in backbone.modules()):
        raise ValueError("the backbone is in training mode: call its eval(), and freeze it")
    folder, device, shown = writable_cache_folder(), trainer.strategy.root_device, shows_progress(trainer)
    network = Network(backbone, device, trainer.precision_plugin)
    check_engine(engine, network)
    digests = image_digests(data.splits, folder, show_progress=shown)
    description = {**description, **describe_computation(network, engine)}
    requests = _requests(data, description, digests, views, until_epoch)
    cache, limit = RowCache(folder, num_features, network.stored_dtype), int(max_gb * GIGABYTE)
    if (size := cache.size(requests)) > limit:
        log.warning(TOO_LARGE, size / GIGABYTE, max_gb)
        return None
    cache.make_room(requests, limit)
    rows, computed = _compute(cache, requests, data, network, engine, show_progress=shown)
    cached = sum(len(request.all_keys) for request in requests) - computed
    log.info("features: %s from cache, %s computed", f"{cached:,}", f"{computed:,}")
    features_device = device if until_epoch is None else torch.device("cpu")
    features = FeatureDataModule(data, rows[0].get("train"), rows[-1], features_device, until_epoch)
    return FrozenFeatures(features, computed, cached)


def backbone_features(
    backbone: Backbone, data: ImageDataModule, trainer: pl.Trainer, *, engine: str, max_gb: float
) -> FeatureDataModule | None:
    """Return the features of images, without augmentation, by a backbone of which nothing may be frozen.

    A run that freezes the same backbone computes the same features, and the other way round.

    Args:
        backbone: the backbone, which is left as it was, but on the CPU.
        data: the images.
        trainer: see `frozen_features`.
        engine: see `frozen_features`.
        max_gb: see `frozen_features`.

    Returns:
        The features, or None, with a warning, if they exceed `max_gb`.

    Raises:
        HeadstartError: see `frozen_features`.
    """
    with evaluation_mode(backbone.module):
        features = frozen_features(
            backbone.module,
            data,
            trainer,
            num_features=backbone.num_features,
            description={"model": backbone.description, "backbone_sha256": module_sha256(backbone.module)},
            engine=engine,
            views=1,
            max_gb=max_gb,
        )
    return features.data if features else None


def _requests(
    data: ImageDataModule, description: Mapping[str, Any], digests: Digests, views: int, until_epoch: int | None
) -> list[Request]:
    """Return the requests for the training views and for the splits to evaluate; one for both if they are the same."""
    training = Request(data.training, description, {"train": views}, digests)
    same = "train" not in data.splits or fingerprint(data.training) == fingerprint(data.evaluation)
    splits = [split for split in data.splits if until_epoch is None or split == "val" or (same and split == "train")]
    evaluation = Request(data.evaluation, description, dict.fromkeys(splits, 1), digests)
    return [evaluation] if same else [training, evaluation]


def _compute(
    cache: RowCache,
    requests: Sequence[Request],
    data: ImageDataModule,
    network: Network,
    engine: str,
    *,
    show_progress: bool,
) -> tuple[list[dict[str, Rows]], int]:
    """Return the rows of each request by split, and how many were computed; the network is on the CPU afterwards."""

    def compute(images: Tensor, names: Sequence[str]) -> NDArray[Any]:
        features = network.engine(engine, images)(images)
        _check_finite(features, names)
        values: NDArray[Any] = features.to(network.stored_dtype).numpy()
        return values

    computed, rows = 0, []
    with torch.cuda.device(network.device) if network.device.type == "cuda" else nullcontext():
        for request in requests:
            of_splits, count = obtain_rows(
                cache,
                request,
                data,
                compute,
                batch_size=network.batch_size("eager"),
                device=network.device,
                label="Computing features",
                show_progress=show_progress,
            )
            computed += count
            rows.append(of_splits)
        network.module.cpu()
        torch.cuda.empty_cache()  # does nothing without a GPU
    return rows, computed


def _check_finite(features: Tensor, names: Sequence[str]) -> None:
    wrong = (~features.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        raise ModelError(
            f"{names[int(wrong[0])]}: the backbone's features of this image are not finite numbers. Are the weights "
            f"damaged, or do they need another preprocessing? With 16-bit precision, try trainer.precision=32-true."
        )


def describe_computation(network: Network, engine: str) -> dict[str, str]:
    """Return what features depend on besides the backbone's weights, the image and its transform, as plain values."""
    versions = {"onnxruntime": version("onnxruntime")} if engine == "onnx" and has_onnx() else {}
    return {
        "code_sha256": code_sha256(network.module),
        "device": network.device.type,
        "precision": str(network.precision.precision),
        "engine": engine,
        **versions,
    }
