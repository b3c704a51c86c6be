"""What is frozen: parameters and buffers that do not change, and modules that stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.utils.errors import ModelError, suggestion


def freeze_backbone(backbone: nn.Module, up_to: bool | str) -> list[nn.Module]:
    """Freezes a backbone, or its first blocks.

    `requires_grad_(False)` alone does not freeze: BatchNorm's running statistics drift and dropout stays on
    while a module is in training mode. So the modules that are frozen as a whole are returned, to be held in
    evaluation mode by `hold_in_eval`.

    Args:
        backbone: modified in place: frozen parameters no longer require gradients.
        up_to: True for all of it, False for nothing, or the name of the last block to freeze, as
            `backbone.named_modules()` spells it ("layer3", "features.5"): it and all that is registered in
            front of it.

    Returns:
        The modules that are frozen with everything in them.

    Raises:
        ModelError: there is no such block.
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
    """Modules from the first to the end of the block; networks register their modules in forward order."""
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
    """Freezes every BatchNorm, scale and shift included, and returns them, to be held in evaluation mode."""
    norms: list[nn.Module] = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    return norms


def hold_in_eval(frozen: Iterable[nn.Module]) -> None:
    """Puts frozen modules into evaluation mode: BatchNorm uses its statistics, dropout is off."""
    for module in frozen:
        module.training = False
