"""In which order images are seen, and by which process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order and a new seed for every image each epoch, the same for the same (seed, epoch).

    Lightning calls `set_epoch`, so a resumed run continues with the order that it would have had. Each of
    `world` processes gets every `world`-th image; the first ones are repeated to make the shares equal, as
    gradients are averaged step by step.

    Args:
        size: how many images there are, and are drawn.
        seed: of the run.
        weights: of each image, in proportion to how often it is drawn, with replacement; None draws each once.
        rank: of this process.
        world: how many processes there are.
    """

    def __init__(self, size: int, seed: int, *, weights: Tensor | None = None, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.weights, self.rank, self.world = size, seed, weights, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.world)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The images of the epoch in order, and a seed for each: two int64 tensors of shape (len(self),)."""
        generator = torch.Generator().manual_seed(mixed_seed("order", self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
            seeds = torch.randint(2**63 - 1, (self.size,), generator=generator)[order]
        else:  # an image that is drawn twice has two views
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
            seeds = torch.randint(2**63 - 1, (self.size,), generator=generator)
        repeated = len(self) * self.world - self.size
        mine = torch.cat([torch.arange(self.size), torch.arange(repeated)])[self.rank :: self.world]
        return order[mine], seeds[mine]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, seeds = self.draw()
        return iter(zip(order.tolist(), seeds.tolist(), strict=True))


class ShareSampler(Sampler[int]):
    """Every `world`-th image in order, none twice, so that figures over all processes count each image once."""

    def __init__(self, size: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def mixed_seed(purpose: str, *parts: int) -> int:
    """One seed from several numbers, unrelated to that of other numbers or for another purpose."""
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def drops_last(size: int, batch_size: int) -> bool:
    """Whether an epoch leaves out its last batch: one image alone would be an error in BatchNorm."""
    return size > batch_size and size % batch_size == 1
