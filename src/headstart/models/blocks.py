"""Blocks of a network in forward order; each can be unfrozen separately and have its own learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Block:
    """A unit of unfreezing, for example a residual block, a transformer layer or a convolution of a VGG.

    Attributes:
        name: name of its last module that has parameters, as in `named_modules()`.
        parameters: names of its parameters, as in `named_parameters()`.
    """

    name: str
    parameters: tuple[str, ...]


def blocks_of(network: nn.Module) -> list[Block]:
    """Divide a network into blocks, assuming that it registers its modules in forward order.

    Sequences of layers are divided, and so are modules that stack blocks of one type. Examples are the stages of a
    ConvNeXt and the layers of a vision transformer. Other modules, such as residual blocks, are not divided. A
    normalisation layer belongs to the block in front of it. A parameter outside of any layer, such as a position
    embedding, belongs to the block after it.

    Returns:
        The blocks in forward order; every parameter is in one of them. Empty if the network has no parameters.
    """
    blocks: list[Block] = []
    pending: tuple[str, ...] = ()
    for name, module, parameters in _parts("", network):
        pending += parameters
        if module is None:
            continue
        if _layers(module) == 0 and blocks:
            blocks[-1] = Block(name, blocks[-1].parameters + pending)
        else:
            blocks.append(Block(name, pending))
        pending = ()
    return blocks


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module | None, tuple[str, ...]]]:
    """Yield name, module and parameter names of each link of a chain; the chain's own parameters have no module."""
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
    """Return whether a sequence has at most one layer with weights, such as convolution, normalisation, activation."""
    return sum(map(_layers, children)) <= 1


def _is_stack(module: nn.Module) -> bool:
    """Return whether a module contains several blocks of the same type, each of more than one layer."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    types = {type(child) for child in children}
    uniform = len(children) > 1 and len(types) == 1 and nn.Sequential not in types  # Sequentials are parallel branches
    return uniform and all(_layers(child) > 1 for child in children)


def _layers(module: nn.Module) -> int:
    """Count the modules that have weights of more than one dimension, without normalisation layers."""
    return sum(
        not isinstance(inner, NORMS) and any(parameter.dim() > 1 for parameter in inner.parameters(recurse=False))
        for inner in module.modules()
    )
