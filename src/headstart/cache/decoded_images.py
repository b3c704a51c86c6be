"""Images that are decoded once: their pixels, mapped from disk, in the place of files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from headstart.cache.disk import GIGABYTE, IMAGES, writable_cache_folder
from headstart.cache.fill import Digests, Request, Shelf, complete, image_digests
from headstart.cache.fingerprints import code_sha256, fingerprint
from headstart.cache.store import Rows
from headstart.data.datamodule import ImageDataModule, Prepared
from headstart.data.image_io import decode_image
from headstart.data.preprocessing import PartOfPacked, PixelRow, Transform, compose, fixed_steps

log = logging.getLogger(__name__)
CLAIMED = 32  # images that a process reserves at once, and at most loses when it is killed
# Twice the side of the parts that are cut out: photographs of 500 by 375 pixels are kept as they are where the network
# sees 224. Parts of larger images are resampled twice, and nearly as sharp.
SIDES = 2


class DecodedImages:
    """Reads images of a split from the cache: a callable, which worker processes take over.

    Args:
        rows: of the split's images, in order.
        packed: how they were made.
    """

    def __init__(self, rows: Rows, packed: PixelRow) -> None:
        self.rows, self.packed = rows, packed

    def __call__(self, index: int) -> Image.Image:
        """Returns the image at an index."""
        return self.packed.unpack(self.rows.row(index))


class _Plan(NamedTuple):
    """How the images of a transform are kept: up to which step, in which rows, and what is left to do."""

    fixed: list[nn.Module]
    row: PixelRow
    left: list[nn.Module]

    def prepared(self, rows: Rows) -> Prepared:
        return Prepared(DecodedImages(rows, self.row), compose(*self.left))


def use_decoded_images(data: ImageDataModule, *, max_gb: float, show_progress: bool) -> bool:
    """Has a data module read its images from the cache, where they are decoded as far as they are not there yet.

    Batches are those of the files, bit for bit, but for one case. Images of which training takes random parts are kept
    whole, up to a number of pixels; larger ones are made smaller, and the same parts are cut out of these. Of all
    others, what gives an image its size is done once, too.

    Args:
        data: the images.
        max_gb: gigabytes (10^9 bytes) that decoded images may have in the cache.
        show_progress: show bars.

    Returns:
        False, with a warning, if the images are too many for the cache.

    Raises:
        DataError: an image that cannot be read, or a disk that is full.
    """
    cache, limit = writable_cache_folder(), int(max_gb * GIGABYTE)
    digests = image_digests(data.splits, cache, show_progress=show_progress)
    training, evaluation = _plan(data.training), _plan(data.evaluation)
    wanted = [_request(evaluation, list(data.splits), cache, digests)]
    own = _request(training, ["train"], cache, digests)
    if fingerprint(own[1].transform) != fingerprint(wanted[0][1].transform):
        wanted.append(own)

    if (size := sum(shelf.size([request]) for shelf, request in wanted)) > limit:
        log.warning(
            "the decoded images take %.2g GB, more than data.cache_gb=%.2g: they are read anew every epoch. Raise "
            "data.cache_gb.",
            size / GIGABYTE,
            max_gb,
        )
        return False
    rows = []
    for shelf, request in wanted:
        shelf.make_room([request], limit)
        of_splits, _ = complete(
            shelf,
            request,
            data,
            _as_rows,
            batch_size=CLAIMED,
            device=None,
            bar="Decoding images",
            show_progress=show_progress,
        )
        rows.append(of_splits)
    data.take_prepared(
        training.prepared(rows[-1]["train"]), {split: evaluation.prepared(found) for split, found in rows[0].items()}
    )
    return True


def _plan(transform: Transform) -> _Plan:
    fixed, left = fixed_steps(transform)
    if fixed:
        middle = fixed[-1]
        assert isinstance(middle, v2.CenterCrop)
        height, width = middle.size
        return _Plan(fixed, PixelRow(height * width), left)
    part = left[0]
    assert isinstance(part, v2.RandomResizedCrop)
    nearest = part.interpolation == InterpolationMode.NEAREST
    return _Plan([], PixelRow((SIDES * part.size[0]) ** 2, nearest=nearest), [PartOfPacked(part), *left[1:]])


def _request(plan: _Plan, splits: list[str], cache: Path, digests: Digests) -> tuple[Shelf, Request]:
    kept, pixels = v2.Compose([*plan.fixed, plan.row]), plan.row.pixels
    kind = f"resized to {pixels:,} pixels" if plan.fixed else f"whole, up to {pixels:,} pixels"
    about = {"decoded": kind, "code_sha256": code_sha256(kept, decode_image)}
    shelf = Shelf(cache, plan.row.row_bytes, torch.uint8, IMAGES)
    return shelf, Request(kept, about, dict.fromkeys(splits, 1), digests)


def _as_rows(images: Tensor, _: object) -> NDArray[np.uint8]:
    rows: NDArray[np.uint8] = images.numpy()
    return rows
