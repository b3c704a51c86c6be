"""Comparison of two pictures that may be cropped, bordered, mirrored, brightened or resized: on small grey thumbnails.

Features find pictures of the same content. Whether they are the same picture is seen by laying one on the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # of thumbnails, in pixels
SMALLEST = 22  # side to which one of two pictures is shrunk to lie within the other: 70 %, that is half of the area
RIM = 2  # pixels of the shrunk picture that are left out: there, detail depends on what lies beside it
FLOOR = 2.0  # grey levels of detail below which there is nothing to compare
# Scores between these are looked at again, with rectangles: copies of which a part of one side is cut off have 0.45 and
# more, and so have an eighth of the pairs of vehicles that are compared, 6 % of those of pets and few of insects.
DOUBTFUL = (0.45, 0.9)

SQUARES = [(side, side) for side in range(SMALLEST, SIDE + 1)]
COARSE = range(SMALLEST, SIDE + 1, 2)
RECTANGLES = [(height, width) for height in COARSE for width in COARSE if height != width]


def alignment_scores(left: Tensor, right: Tensor) -> Tensor:
    """Return how well the pictures of each pair match where one lies best on the other, from -1 to 1.

    One is shrunk in steps of a pixel and moved over the other, and the same with its mirror image; then the other way
    round. A picture of which only the top was cut off is stretched in its thumbnail, so where this leaves a doubt, one
    is shrunk by another factor in width than in height, too. What is compared is detail, each pixel less the mean
    around it: the normalised cross-correlation of brightness itself is high for different pictures, such as objects on
    a white ground.

    Args:
        left: grey thumbnails with values in [0, 255], float32, shape (pairs, SIDE, SIDE).
        right: likewise.
    """
    scores = _best_of_all(left, right, SQUARES)
    doubtful = (scores >= DOUBTFUL[0]) & (scores < DOUBTFUL[1])
    if doubtful.any():
        scores[doubtful] = torch.maximum(scores[doubtful], _best_of_all(left[doubtful], right[doubtful], RECTANGLES))
    return scores


def _best_of_all(left: Tensor, right: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the highest correlation of either picture, shrunk and perhaps mirrored, with a part of the other."""
    mirrored = right.flip(-1)
    ways = ((right, left), (left, right), (mirrored, left), (left, mirrored))
    return torch.stack([_best_fit(inner, outer, sizes) for inner, outer in ways]).amax(dim=0)


def _best_fit(inner: Tensor, outer: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the highest correlation of pictures, shrunk to each size, with parts of others, shape (pairs,)."""
    detail = _detail(outer)
    spectrum, sums = torch.fft.rfft2(detail), _integral(detail)
    squares = _integral(detail.square())
    best = torch.full((len(inner),), -1.0)
    for size in sizes:
        small = F.interpolate(inner[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
        template = _detail(small)[:, RIM:-RIM, RIM:-RIM]
        height, width = template.shape[1:]
        pixels = height * width
        least = FLOOR * pixels**0.5
        template = template - template.mean(dim=(1, 2), keepdim=True)
        template /= template.flatten(1).norm(dim=1).clamp(min=least)[:, None, None]
        # Positions at which the template would leave the picture wrap around, and are cut off.
        products = torch.fft.irfft2(spectrum * torch.fft.rfft2(template, s=(SIDE, SIDE)).conj(), s=(SIDE, SIDE))
        products = products[:, : SIDE - height + 1, : SIDE - width + 1]
        mean = _windows(sums, height, width) / pixels
        norms = (_windows(squares, height, width) - mean.square() * pixels).clamp(min=0).sqrt().clamp(min=least)
        best = torch.maximum(best, (products / norms).flatten(1).amax(dim=1))
    return best


def _detail(pictures: Tensor) -> Tensor:
    """Subtract from each pixel the mean of the five by five around it."""
    return pictures - F.avg_pool2d(F.pad(pictures[:, None], (2, 2, 2, 2), mode="replicate"), 5, 1)[:, 0]


def _integral(pictures: Tensor) -> Tensor:
    """Return the sums over all pixels above and to the left, with a row and a column of zeros in front, in float64."""
    return F.pad(pictures.double().cumsum(1).cumsum(2), (1, 0, 1, 0))


def _windows(sums: Tensor, height: int, width: int) -> Tensor:
    """Return the sum of each window, from an integral image."""
    lower = sums[:, height:, width:] - sums[:, :-height, width:]
    return (lower - sums[:, height:, :-width] + sums[:, :-height, :-width]).float()
