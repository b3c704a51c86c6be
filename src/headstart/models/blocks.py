"""The blocks of a network, first to last: what unfreezes one after the other and has a learning rate of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Block:
    """A part of a network that is trained as one: a residual block, a transformer layer, a convolution of a VGG.

    Attributes:
        name: of its last module that has parameters, as `named_modules()` spells it.
        parameters: names of its parameters, as `named_parameters()` spells them.
    """

    name: str
    parameters: tuple[str, ...]


def blocks_of(network: nn.Module) -> list[Block]:
    """Takes a network apart where it is a chain; networks register their modules in forward order.

    A sequence of layers is a chain, and so is a module that stacks blocks of one kind, such as the stages of a
    ConvNeXt or the layers of a vision transformer. What computes in any other way, such as a residual block, stays
    whole. A normalisation belongs to the layer in front of it, and a parameter that is in no layer, such as a position
    embedding, to the block that follows.

    Args:
        network: any; nothing is run.

    Returns:
        The blocks in forward order; every parameter is in one of them. None if there are no parameters.
    """
    parts = list(_parts("", network))
    blocks: list[Block] = []
    waiting: tuple[str, ...] = ()
    for name, module, parameters in parts:
        waiting += parameters
        if module is None:
            continue
        if _layers(module) == 0 and blocks:
            blocks[-1] = Block(name, blocks[-1].parameters + waiting)
        else:
            blocks.append(Block(name, waiting))
        waiting = ()
    return blocks


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module | None, tuple[str, ...]]]:
    """The links of a chain: name, module and parameters; None for the module of a chain's own parameters."""
    if not _is_chain(module, root=not name):
        yield name, module, tuple(_joined(name, inner) for inner, _ in module.named_parameters())
        return
    own = tuple(_joined(name, inner) for inner, _ in module.named_parameters(recurse=False))
    if own:
        yield name, None, own
    for inner, child in module.named_children():
        if next(child.parameters(), None) is not None:
            yield from _parts(_joined(name, inner), child)


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _is_chain(module: nn.Module, *, root: bool) -> bool:
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    if not children:
        return False
    if root or (isinstance(module, nn.Sequential | nn.ModuleList) and not _is_one_layer(children)):
        return True
    return any(_is_stack(child) for child in (module, *children))


def _is_one_layer(children: list[nn.Module]) -> bool:
    """Whether a sequence is one layer with what belongs to it, such as convolution, normalisation, activation."""
    return sum(map(_layers, children)) <= 1


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds several blocks of one kind, each of more than one layer."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    kinds = {type(child) for child in children}
    alike = len(children) > 1 and len(kinds) == 1 and nn.Sequential not in kinds  # those would be parallel branches
    return alike and all(_layers(child) > 1 for child in children)


def _layers(module: nn.Module) -> int:
    """How many modules in it have weights that are more than those of a normalisation."""
    return sum(
        not isinstance(inner, NORMS) and any(parameter.dim() > 1 for parameter in inner.parameters(recurse=False))
        for inner in module.modules()
    )
