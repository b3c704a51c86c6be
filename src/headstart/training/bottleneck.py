"""What a training spends its time on, in one line, with the settings that would make it faster."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORT_S = 2.0  # of training: below, starting takes more of it than any setting would save
FIXED = 0.5  # of a step: from here on, an image costs at most three quarters in twice the batch
GROWTH = 8  # of the batch that is proposed: beyond, a run has to be tuned anew


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Where the time of a training went.

    Attributes:
        images: seen, all epochs and processes together.
        seconds: of training, without validation.
        waiting: share of them in which the next batch was waited for.
        transfer: share of moving batches to the device.
        compute: share of all the rest; the three add up to 1.
        loading: seconds of reading, decoding and transforming, all of the loader's processes together; None where
            batches are not made of images.
        fixed: share of a step that does not grow with the batch; None if it was not measured.
    """

    images: int
    seconds: float
    waiting: float
    transfer: float
    compute: float
    loading: tuple[float, float, float] | None = None
    fixed: float | None = None

    @property
    def short(self) -> bool:
        """Whether training took too little time to make it faster."""
        return self.seconds < SHORT_S

    @property
    def longest(self) -> str:
        """What most of the time went into: waiting, transfer or compute."""
        return max(self.shares, key=self.shares.__getitem__)

    @property
    def shares(self) -> dict[str, float]:
        """The three shares by name."""
        return {"waiting": self.waiting, "transfer": self.transfer, "compute": self.compute}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a run is set to, as far as its speed depends on it.

    Attributes:
        batch_size: images in a batch of each process.
        train_size: training images.
        num_workers: processes that decode.
        most_workers: that this machine has cores for.
        decoded: whether images are kept decoded.
        wants_decoded: whether they would be, if that could be done.
        tuned: whether the batch was made as large as pays.
        on_cpu: whether the CPU computes.
        gpu: whether there is a GPU.
        half: the faster precision that the device has, if it is not used.
        cached: whether training runs on cached features.
        recomputed: whether a frozen backbone runs at every step although its features could be kept.
        pretrained: whether a backbone that trains could be frozen.
        finetune: whether a strategy of fine-tuning would have to go.
        sized: whether the network takes images of other sizes.
    """

    batch_size: int
    train_size: int
    num_workers: int
    most_workers: int
    decoded: bool
    wants_decoded: bool
    tuned: bool
    on_cpu: bool
    gpu: bool
    half: str | None
    cached: bool
    recomputed: bool
    pretrained: bool
    finetune: bool
    sized: bool


def verdict(measures: Measures, circumstances: Circumstances) -> str:
    """One line: images a second, what most of the time was spent on, and the settings that would help."""
    line = f"speed: {measures.images / measures.seconds:,.0f} images/s"
    if measures.short:
        return f"{line}; {measures.seconds:.1f} s of training are too short to gain much"
    match measures.longest:
        case "waiting":
            what, remedies = _waiting(measures, circumstances)
        case "transfer":
            what = f"{measures.transfer:.0%} of training moves images to the device"
            remedies = _smaller(circumstances)
        case _ if measures.fixed is not None and measures.fixed > FIXED:
            what = f"the batch is small: {measures.fixed:.0%} of a step does not depend on it"
            larger = larger_batch(circumstances.batch_size, measures.fixed, circumstances.train_size)
            remedies = [f"batch_size={larger}", "batch_size=auto"] if larger and not circumstances.tuned else []
        case _:
            what = (
                f"the {'head' if circumstances.cached else 'network'}: {measures.compute:.0%} of the time it computes"
            )
            remedies = _computing(circumstances)
    *others, last = remedies or [""]
    return f"{line}; {what}" + (f": {', '.join(others)}{' or ' if others else ''}{last}" if last else "")


def _waiting(measures: Measures, now: Circumstances) -> tuple[str, list[str]]:
    what = f"{measures.waiting:.0%} of training waits for {'features' if now.cached else 'images'}"
    workers = [f"data.num_workers={now.most_workers}"] if now.num_workers < now.most_workers else []
    if now.decoded:
        return f"{measures.waiting:.0%} of training reads and augments decoded images", ["a cheaper augment", *workers]
    if measures.loading is None:
        return what, []
    decoded = [] if now.wants_decoded else ["data.cache=decoded (each is decoded once)"]
    once = _once(now)
    if now.num_workers and sum(measures.loading) < measures.waiting * measures.seconds / 2:
        return f"{what}, most of it for the worker processes that hand them over", ["data.num_workers=0"]
    longest = max(range(3), key=measures.loading.__getitem__)
    doing = ("reading from the disk", "decoding", "transforming")[longest]
    local = ["a copy on a local disk"] if longest == 0 else []
    return f"{what}, most of it {doing}", [*once, *local, *decoded, *workers]


def _computing(now: Circumstances) -> list[str]:
    remedies = ["trainer=gpu"] if now.on_cpu and now.gpu else []
    if now.half:
        remedies.append(f"trainer.precision={now.half}")
    if now.cached:
        return remedies
    if now.pretrained:
        remedies.append("finetune=none freeze=true" if now.finetune else "freeze=true")
    return [*remedies, *_once(now), *_smaller(now)]


def _once(now: Circumstances) -> list[str]:
    return ["features=auto (the backbone runs once)"] if now.recomputed else []


def _smaller(now: Circumstances) -> list[str]:
    return ["a smaller data.image_size"] if now.sized else []


def larger_batch(batch_size: int, fixed: float, train_size: int) -> int | None:
    """The power of two from which on what grows with the batch is the larger part of a step.

    Args:
        batch_size: images in a batch.
        fixed: share of a step that does not grow with them.
        train_size: training images; an epoch keeps at least four steps.

    Returns:
        At most `GROWTH` times the batch; None if that is no more than there is.
    """
    wanted = batch_size * min(fixed / max(1 - fixed, 1e-6), GROWTH)
    larger = 2 ** math.ceil(math.log2(wanted))
    while larger > min(GROWTH * batch_size, train_size // 4):
        larger //= 2
    return larger if larger > batch_size else None
