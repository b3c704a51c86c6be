"""Freezing: parameters without gradients, and modules that stay in evaluation mode so that buffers do not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.utils.errors import ModelError, suggestion


def freeze_backbone(backbone: nn.Module, up_to: bool | str) -> list[nn.Module]:
    """Freeze a backbone, or its first blocks.

    `requires_grad_(False)` alone is not enough: in training mode, BatchNorm updates its running statistics and dropout
    is active. The modules that are frozen completely are therefore returned; pass them to `hold_in_eval` after every
    call of `train()`.

    Args:
        backbone: the backbone; its frozen parameters no longer require gradients.
        up_to: True to freeze the whole backbone, False to freeze nothing, or the name of the last block to freeze, as
            in `backbone.named_modules()` ("layer3", "features.5"). All modules registered before it are frozen, too.

    Returns:
        The modules whose submodules and parameters are all frozen.

    Raises:
        ModelError: if there is no such block.
    """
    if up_to is False:
        return []
    frozen = list(backbone.modules()) if up_to is True else _up_to(backbone, str(up_to))
    for module in frozen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    members = set(frozen)
    return [module for module in frozen if all(inner in members for inner in module.modules())]


def _up_to(backbone: nn.Module, block: str) -> list[nn.Module]:
    """Return all modules up to the end of the block, assuming that modules are registered in forward order.

    Raises:
        ModelError: if there is no such block.
    """
    names = [name for name, _ in backbone.named_modules() if name]
    if block not in names:
        top = [name for name, _ in backbone.named_children()]
        raise ModelError(
            f"freeze={block}: the backbone has no such block.{suggestion(block, names)} Its blocks are "
            f"{', '.join(top)}, and those within them, such as {names[min(1, len(names) - 1)]}."
        )
    modules, inside = [], False
    for name, module in backbone.named_modules():
        within = name == block or name.startswith(f"{block}.")
        if inside and not within:
            break
        inside = within
        modules.append(module)
    return modules


def freeze_batchnorm(backbone: nn.Module) -> list[nn.Module]:
    """Freeze the scale and shift of every BatchNorm, and return these modules to be passed to `hold_in_eval`."""
    norms: list[nn.Module] = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    return norms


def hold_in_eval(frozen: Iterable[nn.Module]) -> None:
    """Set modules, not their submodules, to evaluation mode: BatchNorm keeps its statistics, and dropout is off."""
    for module in frozen:
        module.training = False


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation mode inside the `with` block, and restore the mode of each afterwards."""
    training = [inner for inner in module.modules() if inner.training]
    module.eval()
    try:
        yield
    finally:
        for inner in training:
            inner.training = True
