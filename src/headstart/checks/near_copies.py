"""Pictures that are nearly the same: crops, resized or compressed copies, mirror images, brightened ones, with borders.

Features name the candidates, and laying one thumbnail on the other decides.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from headstart.checks.alignment import SIDE, alignment_scores
from headstart.checks.neighbours import Neighbours
from headstart.data.dataset import Samples
from headstart.data.image_io import as_image, read_thumbnail
from headstart.utils.progress import Advance

# Alignment score of a near copy. On three real sets, at least 0.985 of planted copies by each of eight transformations
# have it, and of pairs of different images photographs of one scene, and one other pair (benchmarks/check_features.py).
SAME = 0.85
FALSE_POSITIVES = 0.01  # fraction of pairs of different pictures that are similar enough to be compared
CALIBRATION_IMAGES = 200
CALIBRATION_BYTES = 256 * 2**20  # of their copies, decoded
PAIRS = 256  # that are compared at once


def _compressed(image: Image.Image) -> Image.Image:
    """Return an image as a JPEG file of quality 30 has it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def _inner(image: Image.Image, fraction: float) -> Image.Image:
    """Return the middle of an image, a fraction of either side."""
    x, y = (round(length * (1 - fraction) / 2) for length in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


# By the way in which copies come about; of middling strength.
TRANSFORMATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "cropped": lambda image: _inner(image, 0.85),
    "resized": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2))),
    "compressed": _compressed,
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "bordered": lambda image: ImageOps.expand(image, max(1, min(image.size) // 12)),
    "several": lambda image: _compressed(ImageOps.mirror(_inner(image, 0.9))),
}


def calibration_rows(images: int, crop: int) -> NDArray[np.int64]:
    """Draw which of the images to calibrate on, always the same; fewer where the network sees large ones.

    Returns:
        Sorted rows, int64, shape (rows,).
    """
    count = min(CALIBRATION_IMAGES, CALIBRATION_BYTES // (len(TRANSFORMATIONS) * 3 * crop**2))
    return np.sort(np.random.default_rng(0).permutation(images)[: max(1, count)])


def transformed(samples: Samples, images: NDArray[np.int64], resize: Callable[[Image.Image], Any]) -> Samples:
    """Return copies of images by the first of `TRANSFORMATIONS`, then by the second, and so on, as an array.

    Args:
        samples: the images.
        images: indices of those to copy.
        resize: resizes and crops an RGB image as the network expects it.
    """
    originals = [as_image(samples.images[index]) for index in images]
    pixels = [np.asarray(resize(transform(image))) for transform in TRANSFORMATIONS.values() for image in originals]
    return Samples(
        np.stack(pixels),
        np.tile(samples.labels[images], len(TRANSFORMATIONS)),
        [f"{samples.names[index]}, {kind}" for kind in TRANSFORMATIONS for index in images],
    )


@dataclass(frozen=True)
class Threshold:
    """The cosine similarity from which two images are candidates, and what it means on the user's own images.

    Attributes:
        similarity: the threshold.
        recall: fraction of the transformed images that are candidates together with their original.
        false_positives: fraction of pairs of different pictures above it.
    """

    similarity: float
    recall: float
    false_positives: float

    def __str__(self) -> str:
        return (
            f"near copies: images with a cosine similarity of {self.similarity:.2f} or more were compared by their "
            f"pixels; {100 * self.recall:.0f} % of transformed images reach it with their originals, and "
            f"{100 * self.false_positives:.1g} % of pairs of different ones"
        )


def calibrated_threshold(copies: Tensor, originals: Tensor) -> Threshold:
    """Choose the threshold of similarity on transformed images.

    1 % of pairs of different images reach it. Most of these are no near copies, and their pixels tell that:
    a higher threshold would lose those copies of which much is cut off.

    Args:
        copies: vectors of length 1 of the images by the first transformation, then by the second, and so on, shape
            (transformations * images, dimensions).
        originals: those of the images, shape (images, dimensions).
    """
    similarities = (copies @ originals.T).view(-1, len(originals), len(originals))
    same = torch.eye(len(originals), dtype=torch.bool).expand_as(similarities)
    own, others = similarities[same].numpy(), similarities[~same].numpy()
    threshold = float(np.quantile(others, 1 - FALSE_POSITIVES)) if len(others) else -1.0
    reached = float((others >= threshold).sum()) / max(1, len(others))
    return Threshold(threshold, float((own >= threshold).mean()), reached)


def candidate_pairs(neighbours: Neighbours, similarity: float) -> NDArray[np.int64]:
    """Return pairs of images of which one is among the neighbours of the other, at least this similar.

    Returns:
        Rows of the images, the smaller one first, int64, shape (pairs, 2).
    """
    left, rank = np.nonzero((neighbours.similarities >= similarity) & (neighbours.indices >= 0))
    pairs = np.stack([left, neighbours.indices[left, rank]], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def alignment_of_pairs(samples: Samples, pairs: NDArray[np.int64], advance: Advance) -> NDArray[np.float32]:
    """Return the alignment score of each pair of images; see `alignment_scores`.

    Args:
        samples: the images.
        pairs: indices of two images each, sorted, int64, shape (pairs, 2).
        advance: called with the number of pairs after each block of them.
    """
    parts = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(pairs), PAIRS):
        block = pairs[start : start + PAIRS]
        thumbnails = {index: _thumbnail(samples.images[index]) for index in np.unique(block).tolist()}
        left, right = (torch.stack([thumbnails[index] for index in side.tolist()]) for side in block.T)
        parts.append(alignment_scores(left, right).numpy())
        advance(len(block))
    scores: NDArray[np.float32] = np.concatenate(parts)
    return scores


def _thumbnail(image: str | NDArray[np.uint8]) -> Tensor:
    """Read an image as a grey square, float32, shape (SIDE, SIDE)."""
    picture = read_thumbnail(image, 4 * SIDE) if isinstance(image, str) else as_image(image)
    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(grey, dtype=np.float32).copy())
