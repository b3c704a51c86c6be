"""From images to the features of a frozen backbone: what is kept is taken, what is missing is computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn

from headstart.data.images import decode_image
from headstart.data.module import ImageDataModule, mixed_seed
from headstart.data.sources import Samples
from headstart.data.transforms import Transform, evaluation_transform
from headstart.errors import DataError
from headstart.features.cache import DIGESTS, GIGABYTE, cached_sets, make_room, sets_folder, writable_cache_folder
from headstart.features.digests import array_digests, code_sha256, description_sha256, file_digests, fingerprint
from headstart.features.engines import Network, build_engine, check_engine, has_onnx
from headstart.features.extraction import ChangedError, ViewDataset, Views, extract
from headstart.features.loaders import FeatureDataModule
from headstart.features.store import RECORD, FeatureStore, Key, key_of
from headstart.progress import progress_bar

log = logging.getLogger(__name__)
ROUNDS = 3  # how often rows that come back damaged from the disk are computed again

Digests = Mapping[str, Sequence[bytes]]


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


@dataclass(frozen=True)
class Request:
    """What is wanted of one feature set.

    Attributes:
        transform: what renders its views; it belongs to the set with all its arguments.
        about: what else the set belongs to.
        views: how many views of each image, by split.
        digests: of the images of each split.
    """

    transform: Transform
    about: Mapping[str, Any]
    views: Mapping[str, int]
    digests: Digests

    def keys(self, split: str) -> list[Key]:
        """The keys of a split: all images in order, view by view."""
        return [key_of(digest, view) for view in range(self.views[split]) for digest in self.digests[split]]

    @cached_property
    def all_keys(self) -> dict[Key, None]:
        """The keys of all splits, each once, in order."""
        return dict.fromkeys(key for split in self.views for key in self.keys(split))

    def views_of(self, keys: Sequence[Key]) -> list[Views]:
        """The views that these keys stand for, by image; of images with the same content the first."""
        left = set(keys)
        found = []
        for split, views in self.views.items():
            for index, digest in enumerate(self.digests[split]):
                mine = tuple(view for view in range(views) if key_of(digest, view) in left)
                left.difference_update(key_of(digest, view) for view in mine)
                if mine:
                    found.append(Views(split, index, digest, mine))
        return found


@dataclass(frozen=True)
class Shelf:
    """Where the sets of features of one backbone are.

    Attributes:
        cache: the cache folder.
        width: of the features.
        dtype: that they are kept in.
    """

    cache: Path
    width: int
    dtype: torch.dtype

    def open(self, request: Request) -> FeatureStore:
        """Opens the set that a request is for."""
        transform = {"transform": repr(request.transform), "transform_sha256": fingerprint(request.transform)}
        about = {**request.about, **transform}
        folder = sets_folder(self.cache) / description_sha256(about)[:32]
        return FeatureStore(folder, self.width, str(self.dtype).removeprefix("torch."), about)

    def make_room(self, requests: Sequence[Request], limit: int) -> bool:
        """Drops from the cache what was not used for longest, if these requests need its place.

        Args:
            requests: what is about to be kept.
            limit: bytes that the cache may have.

        Returns:
            False, with a warning, if the requests alone are more than the limit.
        """
        row_bytes = self.width * self.dtype.itemsize + RECORD.itemsize
        size = row_bytes * sum(len(request.all_keys) for request in requests)
        if size > limit:
            log.warning(
                "the features take %.2g GB, more than features.max_gb=%.2g: the backbone runs anew every epoch. Raise "
                "features.max_gb, or lower features.views.",
                size / GIGABYTE,
                limit / GIGABYTE,
            )
            return False
        if sum(found.size for found in cached_sets(self.cache)) + size > limit:
            needed, keep = 0, set[Path]()
            for request in requests:
                with closing(self.open(request)) as store:
                    there = [key for key in request.all_keys if key in store]
                    needed += row_bytes * (len(request.all_keys) - len(there))
                    keep |= store.records_of(there)
            # What is needed may lie in segments with much else: then it is cheaper to compute it again.
            if make_room(self.cache, needed, limit, keep) > limit and make_room(self.cache, size, limit) > limit:
                log.warning("other processes use so much of the cache that it grows beyond features.max_gb")
        return True


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
) -> FrozenFeatures | None:
    """The features of all images of a data module, computed as far as they are not kept yet.

    Args:
        backbone: all of it frozen; it comes back on the CPU.
        data: the images.
        num_features: width of the features.
        description: which network it is, with which numbers: plain values.
        device: where to compute, and where features go if they fit.
        precision: the Trainer's plugin.
        engine: how to compute; see `build_engine`.
        views: how many renderings of each training image; without augmentation there is one.
        max_gb: gigabytes (10^9 bytes) that the cache may have.
        show_progress: show bars.

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
    evaluation = Request(data.evaluation, about, dict.fromkeys(data.splits, 1), digests)
    training = Request(data.training, about, {"train": views}, digests)
    same = "train" not in data.splits or fingerprint(data.training) == fingerprint(data.evaluation)
    requests = [evaluation] if same else [training, evaluation]
    shelf = Shelf(cache, num_features, network.stored_dtype)
    if not shelf.make_room(requests, int(max_gb * GIGABYTE)):
        return None

    computed, rows = 0, []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for request in requests:
            with closing(shelf.open(request)) as store:
                try:
                    computed += _compute_missing(store, request, data, network, engine, show_progress)
                except ChangedError:
                    (cache / DIGESTS).unlink(missing_ok=True)  # what is remembered there of files is not to be trusted
                    raise
                rows.append({split: store.rows(request.keys(split)) for split in request.views})
        backbone.cpu()
        torch.cuda.empty_cache()  # nothing without a GPU
    cached = sum(len(request.all_keys) for request in requests) - computed
    log.info("features: %s from cache, %s computed", f"{cached:,}", f"{computed:,}")
    return FrozenFeatures(FeatureDataModule(data, rows[0].get("train"), rows[-1], device), computed, cached)


def _compute_missing(
    store: FeatureStore, request: Request, data: ImageDataModule, network: Network, engine: str, show_progress: bool
) -> int:
    """Computes what a store does not have of a request, and returns how many rows that were."""
    computed, missing = 0, store.missing(request.all_keys)
    for _ in range(ROUNDS):
        if not missing:
            return computed
        with progress_bar("Computing features", len(missing), shown=show_progress) as advance:
            computed += extract(
                store,
                ViewDataset(data.splits, request.transform),
                request.views_of(missing),
                network,
                engine=engine,
                num_workers=data.num_workers,
                advance=advance,
            )
        missing = store.missing(missing)  # reads back what was written
    raise DataError(
        f"{store.folder}: what is written there comes back changed. Check the disk, or name another one by the "
        f"environment variable HEADSTART_CACHE."
    )


def image_digests(splits: Mapping[str, Samples], cache: Path, *, show_progress: bool) -> dict[str, list[bytes]]:
    """SHA-256 of the content of every image, by split and in order: of files their bytes, else pixels and shape."""
    digests = {}
    with progress_bar("Looking up images", sum(map(len, splits.values())), shown=show_progress) as advance:
        for split, samples in splits.items():
            if isinstance(samples.images, np.ndarray):
                digests[split] = array_digests(samples.images)
                advance(len(samples))
            else:
                digests[split] = file_digests(samples.images, cache / DIGESTS, advance)
    return digests


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
