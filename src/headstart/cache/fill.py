"""Rows of images by content: what is wanted of them, where they are kept, and the work of completing them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.cache.disk import DIGESTS, FEATURES, cached_sets, make_room, sets_folder
from headstart.cache.extraction import ChangedError, Compute, ViewDataset, Views, extract
from headstart.cache.fingerprints import array_digests, file_digests, fingerprint
from headstart.cache.store import RECORD, FeatureStore, Key, Rows, key_of
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Transform
from headstart.utils.errors import DataError
from headstart.utils.hashing import description_sha256
from headstart.utils.progress import progress_bar

log = logging.getLogger(__name__)
ROUNDS = 3  # how often rows that come back damaged from the disk are computed again

Digests = Mapping[str, Sequence[bytes]]


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
    """Where the sets of one kind of rows are, such as the features of one backbone.

    Attributes:
        cache: the cache folder.
        width: values of a row.
        dtype: that they are kept in.
        kind: FEATURES or IMAGES: each has a folder and a limit of its own.
    """

    cache: Path
    width: int
    dtype: torch.dtype
    kind: str = FEATURES

    def open(self, request: Request) -> FeatureStore:
        """Opens the set that a request is for."""
        transform = {"transform": repr(request.transform), "transform_sha256": fingerprint(request.transform)}
        about = {**request.about, **transform}
        folder = sets_folder(self.cache, self.kind) / description_sha256(about)[:32]
        return FeatureStore(folder, self.width, str(self.dtype).removeprefix("torch."), about)

    def size(self, requests: Sequence[Request]) -> int:
        """Bytes of all that is requested."""
        return self._row_bytes * sum(len(request.all_keys) for request in requests)

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize + RECORD.itemsize

    def make_room(self, requests: Sequence[Request], limit: int) -> None:
        """Drops from the cache what was not used for longest, if these requests need its place.

        Args:
            requests: what is about to be kept: of at most `limit` bytes.
            limit: bytes that the cache may have.
        """
        size = self.size(requests)
        if sum(found.size for found in cached_sets(self.cache, self.kind)) + size > limit:
            needed, keep = 0, set[Path]()
            for request in requests:
                with closing(self.open(request)) as store:
                    there = [key for key in request.all_keys if key in store]
                    needed += self._row_bytes * (len(request.all_keys) - len(there))
                    keep |= store.records_of(there)
            # What is needed may lie in segments with much else: then it is cheaper to compute it again.
            if (
                make_room(self.cache, needed, limit, keep, self.kind) > limit
                and make_room(self.cache, size, limit, kind=self.kind) > limit
            ):
                log.warning("other processes use so much of the cache of %s that it grows beyond its limit", self.kind)


def complete(
    shelf: Shelf,
    request: Request,
    data: ImageDataModule,
    compute: Compute,
    *,
    batch_size: int,
    device: torch.device | None,
    bar: str,
    show_progress: bool,
) -> tuple[dict[str, Rows], int]:
    """The rows of a request, computed as far as they are not kept yet.

    Args:
        shelf: where they are.
        request: what is wanted.
        data: the images.
        compute: from rendered views to rows.
        batch_size: views that are computed at once.
        device: where; None if decoding is all there is to do.
        bar: what stands in front of the progress bar.
        show_progress: show it.

    Returns:
        Rows of each split, and how many were computed now.

    Raises:
        DataError: an image that cannot be read or is changed meanwhile, or a disk that is full or damaged.
    """
    with closing(shelf.open(request)) as store:
        computed, missing = 0, store.missing(request.all_keys)
        for _ in range(ROUNDS):
            if not missing:
                return {split: store.rows(request.keys(split)) for split in request.views}, computed
            with progress_bar(bar, len(missing), shown=show_progress) as advance:
                try:
                    computed += extract(
                        store,
                        ViewDataset(data.splits, request.transform),
                        request.views_of(missing),
                        compute,
                        batch_size=batch_size,
                        device=device,
                        num_workers=data.num_workers,
                        advance=advance,
                    )
                except ChangedError:
                    # What is remembered there of files is not to be trusted.
                    (shelf.cache / DIGESTS).unlink(missing_ok=True)
                    raise
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
