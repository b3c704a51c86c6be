"""Sampler of training images: their order, their augmentation seeds, and the shard of each process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """A sampler of (index, seed) pairs with a new order and new seeds in each epoch, determined by (seed, epoch).

    Lightning calls `set_epoch`, so that a resumed run continues with the order of an uninterrupted one. Each of `world`
    processes gets every `world`-th image. The first images are repeated to make the shards equal in size, because
    gradients are averaged in every step.

    Args:
        size: number of images, and of draws in an epoch.
        seed: seed of the run.
        weights: weight of each image for drawing with replacement, shape (size,). None draws each image once.
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(self, size: int, seed: int, *, weights: Tensor | None = None, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.weights, self.rank, self.world = size, seed, weights, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.world)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw the image indices of this process's shard in the epoch, and a seed for each.

        Returns:
            Two int64 tensors of shape (len(self),).
        """
        generator = torch.Generator().manual_seed(mixed_seed("order", self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
            seeds = torch.randint(2**63 - 1, (self.size,), generator=generator)[order]
        else:  # an image that is drawn twice has two views
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
            seeds = torch.randint(2**63 - 1, (self.size,), generator=generator)
        shard = torch.arange(self.rank, len(self) * self.world, self.world) % self.size
        return order[shard], seeds[shard]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, seeds = self.draw()
        return iter(zip(order.tolist(), seeds.tolist(), strict=True))


def mixed_seed(purpose: str, *parts: int) -> int:
    """Derive a 63-bit seed from a purpose and several numbers.

    It is a hash: any other purpose or number gives an unrelated seed.
    """
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def drops_last(size: int, batch_size: int) -> bool:
    """Return whether to drop the last batch of an epoch because it has a single image, with which BatchNorm fails."""
    return size > batch_size and size % batch_size == 1
