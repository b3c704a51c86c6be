"""What small copies of images tell: colours, brightness, sharpness, entropy, uniform borders, and a key."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.data.image_io import to_rgb

SIDE = 56  # of the small copies: JPEG decodes images of 224 pixels at a quarter of the side in half the time
FLAT = 16  # maximum range of values, of 255, in what looks uniform: JPEG and scanners leave some noise
EDGE = 32  # minimum difference between the border and the pixels behind it
STRAIGHT = 0.5  # minimum fraction of the pixels behind a border that differ from it
LEVELS = 256
RING = np.pad(np.zeros((SIDE - 2, SIDE - 2), dtype=bool), 1, constant_values=True)  # the outermost pixels

# Brightness is the mean of red, green and blue, from 0 to 255.
PIXELS = np.dtype(
    [
        ("key", "V16"),  # equal for equal pixels
        ("mean", "<f4", (3,)),  # red, green and blue, 0 to 255
        ("border", "<f4", (3,)),  # the same of the outermost pixels
        ("range", "<f4"),  # difference between the largest and the smallest value of a colour, 0 to 255
        ("low", "<f4"),  # brightness that 5 % of the pixels are below or at
        ("high", "<f4"),  # brightness that 99 % of the pixels are below or at
        ("sharpness", "<f4"),  # variance of the Laplacian, divided by the variance of the brightness
        ("entropy", "<f4"),  # of the brightness, in bits, 0 to 8
        ("letterbox", "<f4"),  # fraction of the height or the width that borders on both sides take
    ]
)


def small_copy(image: Image.Image) -> NDArray[np.uint8]:
    """Decode an opened image at a small size.

    Returns:
        The upright image in RGB, squeezed into a square; shape (SIDE, SIDE, 3).

    Raises:
        Exception: it cannot be decoded; see `to_rgb`.
    """
    image.draft(None, (SIDE, SIDE))
    image = to_rgb(image)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image)


def measure(copies: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the facts of small copies of images, dtype `PIXELS`, shape (images,).

    Args:
        copies: see `small_copy`; shape (images, SIDE, SIDE, 3).
        sizes: number of pixels of each image, shape (images,): copies of different sizes have different keys.
    """
    facts = np.zeros(len(copies), dtype=PIXELS)
    for index, (copy, size) in enumerate(zip(copies, sizes.tolist(), strict=True)):
        facts["key"][index] = np.void(hashlib.sha256(copy.tobytes() + b"%d" % size).digest()[:16])
    planes = np.ascontiguousarray(np.moveaxis(copies, 3, 1))  # numpy takes ten times as long for the other order
    facts["mean"] = planes.mean((2, 3))
    facts["border"] = planes[:, :, RING].mean(2)
    facts["range"] = np.ptp(planes.reshape(len(planes), 3, -1), axis=2).max(1)
    grey = planes.sum(1, dtype=np.float32) / 3
    histograms = _histograms(grey)
    below = histograms.cumsum(1)
    facts["low"], facts["high"] = (below < 0.05).sum(1), (below < 0.99).sum(1)
    facts["entropy"] = -(histograms * np.log2(np.maximum(histograms, 1e-9))).sum(1)
    facts["sharpness"] = _laplacian(grey).var((1, 2)) / np.maximum(grey.var((1, 2)), 1)
    facts["letterbox"] = np.maximum(_bars(planes), _bars(planes.swapaxes(2, 3)))
    return facts


def _histograms(grey: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the fraction of pixels at each level of brightness, shape (images, LEVELS)."""
    levels = grey.astype(np.int64) + LEVELS * np.arange(len(grey))[:, None, None]
    counts = np.bincount(levels.ravel(), minlength=LEVELS * len(grey)).reshape(len(grey), LEVELS)
    return counts / SIDE**2


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = grey[:, 1:-1, 1:-1]
    return 4 * middle - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]


def _bars(planes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the fraction of the rows that are uniform bars at the top and at the bottom; 0 without both.

    A bar ends at a straight edge. So an object in front of a uniform background has none: only its extreme points
    touch the first row that is not uniform.

    Args:
        planes: red, green and blue of each image, shape (images, 3, SIDE, SIDE).
    """
    # The smallest and the largest value of each row, shape (images, 3, SIDE).
    least, most = planes.min(3).astype(np.int16), planes.max(3).astype(np.int16)
    top = _bar_heights(planes, least, most)
    bottom = _bar_heights(planes[:, :, ::-1], least[:, :, ::-1], most[:, :, ::-1])
    return np.where((top > 0) & (bottom > 0), top + bottom, 0) / SIDE


def _bar_heights(planes: NDArray[np.uint8], least: NDArray[np.int16], most: NDArray[np.int16]) -> NDArray[np.int64]:
    colours = planes[:, :, 0].mean(2)[:, :, None]  # of the first row
    uniform = ((most - colours <= FLAT) & (colours - least <= FLAT)).all(1)
    heights = np.logical_and.accumulate(uniform, axis=1).sum(1)
    # The row next to a bar may be a mixture of both; the one behind it is not.
    behind = planes[np.arange(len(planes)), :, np.minimum(heights + 1, SIDE - 1)]
    straight = (np.abs(behind - colours).max(1) > EDGE).mean(1) >= STRAIGHT
    return np.where(straight & (heights < SIDE // 2), heights, 0)
