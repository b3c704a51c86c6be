"""Requests for cached rows of images, the set that each belongs to, and the computation of missing rows."""

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
from headstart.cache.segments import RECORD, Key, Rows, key_of
from headstart.cache.store import FeatureStore
from headstart.data.datamodule import ImageDataModule
from headstart.data.dataset import Samples
from headstart.data.preprocessing import Transform
from headstart.utils.errors import DataError
from headstart.utils.hashing import description_sha256
from headstart.utils.progress import progress_bar

log = logging.getLogger(__name__)
ROUNDS = 3  # attempts to compute rows, in case they are damaged when they are read back from the disk

Digests = Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class Request:
    """A request for rows of one set. Rows are identified by the content of images, not by their names.

    Attributes:
        transform: transform that renders the views; its classes and arguments are part of the set's identity.
        description: everything else that identifies the set, as plain values.
        views: number of views of each image, by split.
        digests: SHA-256 of each image's content, by split.
    """

    transform: Transform
    description: Mapping[str, Any]
    views: Mapping[str, int]
    digests: Digests

    def keys(self, split: str) -> list[Key]:
        """Return the keys of a split: the first view of all images in order, then the second view, and so on."""
        return [key_of(digest, view) for view in range(self.views[split]) for digest in self.digests[split]]

    @cached_property
    def all_keys(self) -> dict[Key, None]:
        """Return the keys of all splits in order, without duplicates."""
        return dict.fromkeys(key for split in self.views for key in self.keys(split))

    def views_of(self, keys: Sequence[Key]) -> list[Views]:
        """Return the views that these keys identify, grouped by image; of identical images only the first is used."""
        remaining = set(keys)
        items = []
        for split, count in self.views.items():
            for index, digest in enumerate(self.digests[split]):
                views = tuple(view for view in range(count) if key_of(digest, view) in remaining)
                remaining.difference_update(key_of(digest, view) for view in views)
                if views:
                    items.append(Views(split, index, digest, views))
        return items


@dataclass(frozen=True)
class RowCache:
    """The cached rows of one format, for example the features of one backbone.

    Attributes:
        folder: the cache folder.
        width: number of values in a row.
        dtype: dtype of the cached values.
        kind: FEATURES or IMAGES; each kind has its own folder and its own size limit.
    """

    folder: Path
    width: int
    dtype: torch.dtype
    kind: str = FEATURES

    def open(self, request: Request) -> FeatureStore:
        """Open the set that a request belongs to; it is created if it does not exist.

        Raises:
            DataError: if its folder cannot be read or written.
        """
        transform = {"transform": repr(request.transform), "transform_sha256": fingerprint(request.transform)}
        description = {**request.description, **transform}
        folder = sets_folder(self.folder, self.kind) / description_sha256(description)[:32]
        return FeatureStore(folder, self.width, str(self.dtype).removeprefix("torch."), description)

    def size(self, requests: Sequence[Request]) -> int:
        """Return the size in bytes of all rows that are requested, cached or not."""
        return self._row_bytes * sum(len(request.all_keys) for request in requests)

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize + RECORD.itemsize

    def make_room(self, requests: Sequence[Request], limit: int) -> None:
        """Evict the least recently used segments if these requests need the space.

        A warning is logged if other processes have so much in use that the limit will be exceeded.

        Args:
            requests: requests that are about to be completed, of at most `limit` bytes in all.
            limit: maximum size in bytes of all sets of this kind.
        """
        size = self.size(requests)
        if sum(cached.size for cached in cached_sets(self.folder, self.kind)) + size > limit:
            needed, preserved = 0, set[Path]()
            for request in requests:
                with closing(self.open(request)) as store:
                    cached = [key for key in request.all_keys if key in store]
                    needed += self._row_bytes * (len(request.all_keys) - len(cached))
                    preserved |= store.records_of(cached)
            # If the rows' segments contain too many other rows, evict them too: the rows are then computed again.
            if (
                make_room(self.folder, needed, limit, preserved, self.kind) > limit
                and make_room(self.folder, size, limit, kind=self.kind) > limit
            ):
                log.warning("other processes use so much of the cache of %s that it grows beyond its limit", self.kind)


def obtain_rows(
    cache: RowCache,
    request: Request,
    data: ImageDataModule,
    compute: Compute,
    *,
    batch_size: int,
    device: torch.device | None,
    label: str,
    show_progress: bool,
) -> tuple[dict[str, Rows], int]:
    """Return the rows of a request, after computing those that are not cached yet.

    Args:
        cache: location and format of the rows.
        request: the rows to return.
        data: the images.
        compute: maps rendered views and the names of their images to rows.
        batch_size: number of views in a batch.
        device: device that computes; None if the images only have to be decoded.
        label: description in front of the progress bar.
        show_progress: whether to show the progress bar.

    Returns:
        The rows of each split, and the number of rows that this call has computed.

    Raises:
        DataError: if an image cannot be read or changes in the meantime, or the disk is full or damaged.
    """
    with closing(cache.open(request)) as store:
        computed, missing = 0, store.missing(request.all_keys)
        for _ in range(ROUNDS):
            if not missing:
                return {split: store.rows(request.keys(split)) for split in request.views}, computed
            with progress_bar(label, len(missing), shown=show_progress) as advance:
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
                    # The file has changed without a new time stamp, so the remembered digests cannot be trusted.
                    (cache.folder / DIGESTS).unlink(missing_ok=True)
                    raise
            missing = store.missing(missing)  # verifies the rows that were written
        raise DataError(
            f"{store.folder}: what is written there comes back changed. Check the disk, or name another one by the "
            f"environment variable HEADSTART_CACHE."
        )


def image_digests(splits: Mapping[str, Samples], cache: Path, *, show_progress: bool) -> dict[str, list[bytes]]:
    """Return the SHA-256 of every image's content, by split and in order.

    Args:
        splits: the images; files are hashed by their bytes, arrays by pixels and shape.
        cache: the cache folder, which holds the table of file digests.
        show_progress: whether to show a progress bar.
    """
    digests = {}
    with progress_bar("Looking up images", sum(map(len, splits.values())), shown=show_progress) as advance:
        for split, samples in splits.items():
            if isinstance(samples.images, np.ndarray):
                digests[split] = array_digests(samples.images)
                advance(len(samples))
            else:
                digests[split] = file_digests(samples.images, cache / DIGESTS, advance)
    return digests
