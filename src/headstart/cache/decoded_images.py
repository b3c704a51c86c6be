"""Decoded images: images are decoded once, and their pixels are then read from memory-mapped files in the cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from headstart.cache.disk import GIGABYTE, IMAGES, writable_cache_folder
from headstart.cache.fill import Digests, Request, RowCache, image_digests, obtain_rows
from headstart.cache.fingerprints import code_sha256, fingerprint
from headstart.cache.segments import Rows
from headstart.data.datamodule import CachedImages, ImageDataModule
from headstart.data.preprocessing import PackedRandomResizedCrop, PixelPacker, Transform, compose, fixed_steps

log = logging.getLogger(__name__)
BATCH_SIZE = 32  # images that a worker decodes at once
# Images are cached with up to the area of a square of twice the crop's side. With crops of 224 pixels, photographs of
# 500 by 375 pixels are cached unchanged. Crops of larger images are resampled twice and are nearly as sharp.
SIDES = 2


class DecodedImages:
    """A picklable callable that reads the decoded images of a split from the cache.

    Args:
        rows: the rows of the split's images, in order.
        packed: the transform that packed the images into rows.
    """

    def __init__(self, rows: Rows, packed: PixelPacker) -> None:
        self.rows, self.packed = rows, packed

    def __call__(self, index: int) -> Image.Image:
        """Return the image at an index."""
        return self.packed.unpack(self.rows.row(index))


class _Plan(NamedTuple):
    """A division of a transform into steps that are done once, and steps that are done at every access.

    Attributes:
        fixed: steps whose result is cached; empty if whole images are cached.
        row: the transform that packs an image into a row.
        left: remaining steps, which run after a row is unpacked.
    """

    fixed: list[nn.Module]
    row: PixelPacker
    left: list[nn.Module]

    def prepared(self, rows: Rows) -> CachedImages:
        return CachedImages(DecodedImages(rows, self.row), compose(*self.left))


def use_decoded_images(data: ImageDataModule, *, max_gb: float, show_progress: bool) -> bool:
    """Set a data module up to read decoded images from the cache, after decoding those that are not cached yet.

    If the transform begins with resizing and center-cropping, the result of these steps is cached. Batches are then
    bit-identical to those from files. If training takes random crops (RandomResizedCrop), whole images are cached, up
    to a number of pixels. Larger images are downscaled, and the same crops are taken from the smaller images; only
    these crops differ from those from files.

    Args:
        data: the images; modified in place.
        max_gb: maximum size of the cached images in gigabytes (10^9 bytes).
        show_progress: whether to show progress bars.

    Returns:
        True, or False, with a warning, if the images exceed `max_gb`; `data` is unchanged then.

    Raises:
        DataError: if an image cannot be read, or the disk is full.
    """
    folder, limit = writable_cache_folder(), int(max_gb * GIGABYTE)
    digests = image_digests(data.splits, folder, show_progress=show_progress)
    training, evaluation = _plan(data.training), _plan(data.evaluation)
    requests = [_request(evaluation, list(data.splits), folder, digests)]
    of_training = _request(training, ["train"], folder, digests)
    if fingerprint(of_training[1].transform) != fingerprint(requests[0][1].transform):
        requests.append(of_training)

    if (size := sum(cache.size([request]) for cache, request in requests)) > limit:
        log.warning(
            "the decoded images take %.2g GB, more than data.cache_gb=%.2g: they are read again in every epoch. Raise "
            "data.cache_gb.",
            size / GIGABYTE,
            max_gb,
        )
        return False
    rows = []
    for cache, request in requests:
        cache.make_room([request], limit)
        of_splits, _ = obtain_rows(
            cache,
            request,
            data,
            lambda images, _: images.numpy(),
            batch_size=BATCH_SIZE,
            device=None,
            label="Decoding images",
            show_progress=show_progress,
        )
        rows.append(of_splits)
    data.use_cached_images(
        training.prepared(rows[-1]["train"]),
        {split: evaluation.prepared(of_split) for split, of_split in rows[0].items()},
    )
    return True


def _plan(transform: Transform) -> _Plan:
    fixed, left = fixed_steps(transform)
    if fixed:
        middle = fixed[-1]
        assert isinstance(middle, v2.CenterCrop)
        height, width = middle.size
        return _Plan(fixed, PixelPacker(height * width), left)
    part = left[0]
    assert isinstance(part, v2.RandomResizedCrop)
    nearest = part.interpolation == InterpolationMode.NEAREST
    return _Plan(
        [], PixelPacker((SIDES * part.size[0]) ** 2, nearest=nearest), [PackedRandomResizedCrop(part), *left[1:]]
    )


def _request(plan: _Plan, splits: list[str], folder: Path, digests: Digests) -> tuple[RowCache, Request]:
    transform, pixels = v2.Compose([*plan.fixed, plan.row]), plan.row.pixels
    kind = f"resized to {pixels:,} pixels" if plan.fixed else f"whole, up to {pixels:,} pixels"
    description = {"decoded": kind, "code_sha256": code_sha256(transform)}
    cache = RowCache(folder, plan.row.row_bytes, torch.uint8, IMAGES)
    return cache, Request(transform, description, dict.fromkeys(splits, 1), digests)
