"""Feature extraction for images without cached rows: workers decode, this process computes and appends to the store."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from headstart.cache.segments import Key, key_of
from headstart.cache.store import FeatureStore
from headstart.data.dataset import Samples
from headstart.data.image_io import decode_image, read_bytes
from headstart.data.preprocessing import Transform
from headstart.data.samplers import mixed_seed
from headstart.data.workers import exit_with_parent, lower_priority
from headstart.utils.errors import DataError
from headstart.utils.progress import Advance

log = logging.getLogger(__name__)
PREFETCH = 4  # batches that each worker loads ahead of the forward pass
WAIT = 0.2  # seconds between checks of what other processes are computing

Compute = Callable[[Tensor, Sequence[str]], NDArray[Any]]  # maps views and the names of their images to rows


class ChangedError(DataError):
    """The error of a file whose content does not match its digest."""


@dataclass(frozen=True, slots=True)
class Views:
    """An image and the views of it that are to be computed.

    Attributes:
        split: the split that contains the image.
        index: index of the image in the split.
        digest: SHA-256 of the image's content.
        views: indices of the views.
    """

    split: str
    index: int
    digest: bytes
    views: tuple[int, ...]

    @property
    def keys(self) -> list[Key]:
        """Return the views' keys in the store."""
        return [key_of(self.digest, view) for view in self.views]


class ViewDataset(Dataset[Tensor]):
    """A dataset, indexed by `Views`, whose items are the rendered views of one image.

    An item has the shape (views, ...), for example float32 (views, 3, height, width).

    Args:
        splits: the images of each split.
        transform: maps an image to one of its views; it may be random.
    """

    def __init__(self, splits: Mapping[str, Samples], transform: Transform) -> None:
        self.splits, self.transform = splits, transform

    def __getitem__(self, item: Views) -> Tensor:
        image = self._read(item)
        rendered = []
        with torch.random.fork_rng(devices=[]):
            for view in item.views:
                # The seed depends on the image and the view's index only, not on its name, its split or the run's seed.
                torch.manual_seed(mixed_seed("view", int.from_bytes(item.digest), view))
                rendered.append(self.transform(image))
        return torch.stack(rendered)

    def _read(self, item: Views) -> Image.Image:
        image = self.splits[item.split].images[item.index]
        if not isinstance(image, str):
            return Image.fromarray(np.ascontiguousarray(image))
        data = read_bytes(image)
        decoded = decode_image(data, image)
        if hashlib.sha256(data).digest() != item.digest:
            raise ChangedError(f"{image} was changed while it was being read. Run the same command again.")
        return decoded


class ClaimSampler:
    """A batch sampler of views for a DataLoader; each batch is locked in the store when the loader requests it.

    Args:
        store: the store that the rows will be appended to.
        requested: the views to compute; not empty.
        size: maximum number of views in a batch, unless one image has more.

    Attributes:
        dispatched: batches that the loader has requested and not returned yet, oldest first.
        elsewhere: views that other processes have locked.
        finished_elsewhere: number of views that other processes have finished in the meantime.
    """

    def __init__(self, store: FeatureStore, requested: Sequence[Views], size: int) -> None:
        self.store = store
        self.dispatched: deque[list[Views]] = deque()
        self.elsewhere: list[Views] = []
        self.finished_elsewhere = 0
        images = max(1, size // max(len(item.views) for item in requested))
        parts = (requested[start : start + images] for start in range(0, len(requested), images))
        self._batches = (batch for part in parts if (batch := self._claim(part)))
        self._first = next(self._batches, None)

    def __bool__(self) -> bool:
        """Tell whether this process has anything to compute."""
        return self._first is not None

    def __iter__(self) -> Iterator[list[Views]]:
        for batch in chain([self._first] if self._first else [], self._batches):
            self.dispatched.append(batch)
            yield batch

    def _claim(self, items: Sequence[Views]) -> list[Views]:
        claimed = {key for item in items for key in item.keys if self.store.claim(key)}
        self.store.refresh()  # after locking: no other process can finish one of the locked keys from now on
        batch = []
        for item in items:
            keys = dict(zip(item.views, item.keys, strict=True))
            absent = [view for view in item.views if keys[view] not in self.store]
            self.finished_elsewhere += len(item.views) - len(absent)
            self.store.release(key for view, key in keys.items() if view not in absent and key in claimed)
            locked_here = tuple(view for view in absent if keys[view] in claimed)
            locked_elsewhere = tuple(view for view in absent if keys[view] not in claimed)
            if locked_here:
                batch.append(replace(item, views=locked_here))
            if locked_elsewhere:
                self.elsewhere.append(replace(item, views=locked_elsewhere))
        return batch


def extract(
    store: FeatureStore,
    dataset: ViewDataset,
    requested: Sequence[Views],
    compute: Compute,
    *,
    batch_size: int,
    device: torch.device | None,
    num_workers: int,
    advance: Advance,
) -> int:
    """Compute rows and append them to the store. Wait for rows that another process is computing.

    Args:
        store: the store to append to.
        dataset: renders the views.
        requested: the views to compute.
        compute: maps rendered views and the names of their images to rows.
        batch_size: number of views in a batch.
        device: device that computes; None if the images only have to be decoded.
        num_workers: number of worker processes that decode.
        advance: called with the number of views that were finished.

    Returns:
        The number of views that this process has computed.

    Raises:
        DataError: if an image cannot be read, or the store cannot be written.
        ChangedError: if an image file does not match its digest.
    """
    computed, remaining, waited = 0, list(requested), False
    while remaining:
        claims = ClaimSampler(store, remaining, batch_size)
        if not claims:
            if not waited:
                log.info("waiting for another process that computes the rows of %s images", f"{len(remaining):,}")
            waited = True
            time.sleep(WAIT)
        loader = DataLoader(
            dataset,
            batch_sampler=claims,
            collate_fn=_join,
            num_workers=num_workers if claims else 0,
            pin_memory=device is not None and device.type == "cuda",
            prefetch_factor=PREFETCH if claims and num_workers else None,
            worker_init_fn=lower_priority if device is not None and device.type == "cpu" else exit_with_parent,
            generator=torch.Generator(),  # its own, so that the run's random state does not depend on what is cached
        )
        for images in loader:
            batch = claims.dispatched.popleft()
            names = [dataset.splits[item.split].names[item.index] for item in batch for _ in item.views]
            keys = [key for item in batch for key in item.keys]
            store.append(keys, compute(images, names))
            store.release(keys)
            computed += len(keys)
            advance(len(keys))
        advance(claims.finished_elsewhere)
        remaining = claims.elsewhere
    return computed


def _join(views: list[Tensor]) -> Tensor:
    if all(part.shape == views[0].shape for part in views):
        joined: Tensor = default_collate(views)  # collates directly into shared memory
        return joined.flatten(0, 1)
    return torch.cat(views)
