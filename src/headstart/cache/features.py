"""From images to the features of a frozen backbone: what is kept is taken, what is missing is computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import Precision
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.cache.disk import GIGABYTE, writable_cache_folder
from headstart.cache.engines import Network, build_engine, check_engine, has_onnx
from headstart.cache.extraction import ViewDataset
from headstart.cache.feature_loaders import FeatureDataModule
from headstart.cache.fill import Request, Shelf, complete, image_digests
from headstart.cache.fingerprints import code_sha256, fingerprint
from headstart.data.datamodule import ImageDataModule
from headstart.data.image_io import decode_image
from headstart.data.preprocessing import evaluation_transform
from headstart.data.samplers import mixed_seed
from headstart.utils.errors import ModelError

log = logging.getLogger(__name__)


class FrozenFeatures(NamedTuple):
    """Features in the place of images.

    Attributes:
        data: their loaders.
        computed: how many rows, which are views of images, went through the backbone now.
        cached: how many were there, or were computed by another process meanwhile.
    """

    data: FeatureDataModule
    computed: int
    cached: int


def frozen_features(
    backbone: nn.Module,
    data: ImageDataModule,
    *,
    num_features: int,
    description: Mapping[str, Any],
    device: torch.device,
    precision: Precision,
    engine: str,
    views: int,
    max_gb: float,
    show_progress: bool,
    until_epoch: int | None = None,
) -> FrozenFeatures | None:
    """The features of the images of a data module, computed as far as they are not kept yet.

    Args:
        backbone: all of it frozen; it comes back on the CPU.
        data: the images.
        num_features: width of the features.
        description: which network it is, with which numbers: plain values.
        device: where to compute.
        precision: the Trainer's plugin.
        engine: how to compute; see `build_engine`.
        views: how many renderings of each training image; without augmentation there is one.
        max_gb: gigabytes (10^9 bytes) that the cache may have.
        show_progress: show bars.
        until_epoch: the first epoch that trains on the images instead; see `FeatureDataModule`. Then features are those
            of training and validation alone, and stay in the CPU's memory: what unfreezes needs a GPU's.

    Returns:
        The features, or None, with a warning, if they are too many for the cache.

    Raises:
        DataError: an image that cannot be read, or a disk that is full.
        ModelError: the backbone's features are not finite, or not those of the engine.
        ConfigError: the engine cannot be had here.
        ValueError: part of the backbone is in training mode: its features would change from batch to batch.
    """
    if any(module.training for module in backbone.modules()):
        raise ValueError("the backbone is in training mode: call its eval(), and freeze it")
    cache = writable_cache_folder()
    network = Network(backbone, device, precision)
    check_engine(engine, network)
    digests = image_digests(data.splits, cache, show_progress=show_progress)
    about = {**description, **circumstances(network, engine)}
    training = Request(data.training, about, {"train": views}, digests)
    same = "train" not in data.splits or fingerprint(data.training) == fingerprint(data.evaluation)
    seen = [split for split in data.splits if until_epoch is None or split == "val" or (same and split == "train")]
    evaluation = Request(data.evaluation, about, dict.fromkeys(seen, 1), digests)
    requests = [evaluation] if same else [training, evaluation]
    shelf = Shelf(cache, num_features, network.stored_dtype)
    limit = int(max_gb * GIGABYTE)
    if (size := shelf.size(requests)) > limit:
        log.warning(
            "the features take %.2g GB, more than features.max_gb=%.2g: the backbone runs anew every epoch. Raise "
            "features.max_gb, or lower features.views.",
            size / GIGABYTE,
            max_gb,
        )
        return None
    shelf.make_room(requests, limit)

    def compute(images: Tensor, names: Sequence[str]) -> NDArray[Any]:
        found = network.engine(engine, images)(images)
        _check_finite(found, names)
        values: NDArray[Any] = found.to(network.stored_dtype).numpy()
        return values

    computed, rows = 0, []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for request in requests:
            of_splits, now = complete(
                shelf,
                request,
                data,
                compute,
                batch_size=network.batch_size("eager"),
                device=network.device,
                bar="Computing features",
                show_progress=show_progress,
            )
            computed += now
            rows.append(of_splits)
        backbone.cpu()
        torch.cuda.empty_cache()  # nothing without a GPU
    cached = sum(len(request.all_keys) for request in requests) - computed
    log.info("features: %s from cache, %s computed", f"{cached:,}", f"{computed:,}")
    place = device if until_epoch is None else torch.device("cpu")
    served = FeatureDataModule(data, rows[0].get("train"), rows[-1], place, until_epoch)
    return FrozenFeatures(served, computed, cached)


def _check_finite(features: Tensor, names: Sequence[str]) -> None:
    wrong = (~features.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        raise ModelError(
            f"{names[int(wrong[0])]}: the backbone's features of this image are not finite numbers. Are the weights "
            f"damaged, or do they need another preprocessing? With 16-bit precision, try trainer.precision=32-true."
        )


def circumstances(network: Network, engine: str) -> dict[str, str]:
    """What features depend on besides the backbone's numbers, the image and its transform."""
    versions = {"onnxruntime": version("onnxruntime")} if engine == "onnx" and has_onnx() else {}
    return {
        "code_sha256": code_sha256(
            network.module, decode_image, evaluation_transform, mixed_seed, ViewDataset, build_engine
        ),
        "device": network.device.type,
        "precision": str(network.precision.precision),
        "engine": engine,
        **versions,
    }
