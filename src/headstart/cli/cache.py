"""`headstart cache`: list or clear cached features and decoded images, without importing torch."""

from __future__ import annotations

import re
import time
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from headstart.cache.disk import FEATURES, IMAGES, CachedSet, cache_folder, cached_sets, clear
from headstart.utils.console import printable


def add(commands: Any) -> None:
    """Add the command to the parser.

    Args:
        commands: what `ArgumentParser.add_subparsers` returns.
    """
    parser = commands.add_parser("cache", help="cached features of frozen backbones and decoded images: list, clear")
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.set_defaults(run=lambda arguments: clear_cache() if arguments.action == "clear" else list_cache())


def list_cache() -> None:
    """Print the contents of the cache: features, then decoded images, each the most recently used first."""
    for kind, unit in ((FEATURES, "rows"), (IMAGES, "images")):
        sets = cached_sets(cache_folder(), kind)
        for cached in sets:
            _print(_format_set(cached))
        rows, size = sum(cached.rows for cached in sets), sum(cached.size for cached in sets)
        if sets or kind == FEATURES:
            _print(f"{rows:,} {unit}, {decimal(size)} in {cache_folder()}")


def _format_set(cached: CachedSet) -> str:
    """Describe a cached set in two lines: network, size and last use; then the transform and how it was computed."""
    description = cached.description
    steps = _format_steps(str(description.get("transform", "")))
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(cached.used))
    if "decoded" in description:
        title = f"decoded images: {description['decoded']}  {cached.rows:,} images"
        return f"{title}  {decimal(cached.size)}  last used {used}\n    {steps}"
    network = _format_model(description.get("model")) or f"unknown ({cached.folder.name})"
    weights = str(description.get("backbone_sha256", ""))[:8]
    computed = " ".join(str(description.get(name, "")) for name in ("device", "precision", "engine"))
    return (
        f"{network}  weights {weights}  {cached.rows:,} rows  {decimal(cached.size)}  last used {used}\n"
        f"    {steps}; {computed}"
    )


def _format_model(model: Any) -> str:
    return " ".join(map(str, model.values())) if isinstance(model, dict) else ""


def _format_steps(transform: str) -> str:
    """List the steps of a transform with their sizes, without those that every transform has."""
    steps = re.findall(r"^\s+(\w+)\((?:.*?size=\(?\[?([\d, ]+)[\])])?", transform, re.MULTILINE)
    plain = ("PILToTensor", "ToDtype", "Normalize")
    return ", ".join(f"{name} {size}".strip() for name, size in steps if name not in plain)


def clear_cache() -> None:
    """Clear the cache, except for the sets in use by a run, and print how much was freed."""
    freed, in_use = clear(cache_folder())
    remaining = f"; {in_use} in use remain" if in_use else ""
    _print(f"freed {decimal(freed)} in {cache_folder()}{remaining}")


def _print(text: str) -> None:
    Console().print(printable(text), soft_wrap=True, highlight=False, markup=False)
