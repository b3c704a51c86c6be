"""What of a training step does not grow with the batch, found by trying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from headstart.data.datamodule import Batch
from headstart.utils.errors import brief

log = logging.getLogger(__name__)

WIDER = 4  # times as many images in the larger pass: what a batch gains shows beyond its double
LONGEST_S = 0.2  # of one forward and backward pass, were nothing of it fixed
PROBE_S = 0.5  # of all of them, unless two of each take longer
LEAST = 2


def fixed_share(network: nn.Module, sample: Batch, batch_size: int, seconds: float, precision: Precision) -> float:
    """The share of a forward and a backward pass that does not grow with the batch.

    Passes at n and 4n images are timed, which a line a + b × images goes through; n is the batch size, so that the line
    says what a larger batch would bring, or less where that would take longer than `LONGEST_S`. Weights, buffers,
    gradients and the random state are left as they are: the passes have buffers of their own, and the gradients that
    they find are given away.

    Args:
        network: gives logits; on the device, in the mode to be timed; not compiled anew for this.
        sample: one image and its label, as the network takes them.
        batch_size: of a step.
        seconds: that the two passes take in a step.
        precision: that of training.

    Returns:
        a / (a + b × batch_size), in [0, 1]; 0 where it cannot be tried.
    """
    longest = LONGEST_S * batch_size / seconds  # in images
    size, least = batch_size, min(batch_size, 2)  # BatchNorm may need two
    while size > least and WIDER * size > longest:
        size = max(size // 2, least)
    wider = WIDER if WIDER * size <= longest else 2
    if wider * size > longest:
        return 0.0  # an image takes so long that what is fixed does not count
    device = sample[0].device
    try:
        # Compiling for these sizes would take longer than many an epoch; then this is an error as well.
        with (
            torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []),
            torch.compiler.set_stance("fail_on_recompile"),
        ):
            passes = [_pass(network, sample, n, precision) for n in (size, wider * size)]
            small, large = _times(passes, device)
    except Exception as error:  # such as memory that is short, or a layer that wants larger batches: this costs no run
        log.debug("what of a step is fixed was not found: %s", brief(error))
        return 0.0
    growing = max(large - small, 0.0) / ((wider - 1) * size)
    fixed = max(small - growing * size, 0.0)
    return fixed / (fixed + growing * batch_size)


def _pass(network: nn.Module, sample: Batch, size: int, precision: Precision) -> Callable[[], None]:
    """A forward and a backward pass over as many copies of the image."""
    images, labels = (part.repeat(size, *[1] * (part.ndim - 1)) for part in sample)
    weights = {name: p.detach().requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    trained = [weight for weight in weights.values() if weight.requires_grad]

    def run() -> None:
        context: AbstractContextManager[Any] = precision.forward_context()
        with context:
            loss = F.cross_entropy(functional_call(network, {**weights, **buffers}, (images,)), labels)
        torch.autograd.grad(loss, trained, allow_unused=True)

    return run


def _times(passes: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """Seconds of each, in turns; the shortest of several, which other processes have disturbed least."""
    best = [float("inf")] * len(passes)
    end = time.perf_counter() + PROBE_S
    turn = -1  # the first one makes memory and kernels ready
    while turn < LEAST or time.perf_counter() < end:
        for place, run in enumerate(passes):
            _finish(device)
            start = time.perf_counter()
            run()
            _finish(device)
            if turn >= 0:
                best[place] = min(best[place], time.perf_counter() - start)
        turn += 1
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
