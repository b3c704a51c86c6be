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
    parser = commands.add_parser(
        "cache", help="features of frozen backbones and decoded images that are kept: list, clear"
    )
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.set_defaults(run=lambda words: clear_cache() if words.action == "clear" else list_cache())


def list_cache() -> None:
    """Print the contents of the cache: features, then decoded images, each the most recently used first."""
    for kind, unit in ((FEATURES, "rows"), (IMAGES, "images")):
        sets = cached_sets(cache_folder(), kind)
        for found in sets:
            _print(_described(found))
        rows, size = sum(found.rows for found in sets), sum(found.size for found in sets)
        if sets or kind == FEATURES:
            _print(f"{rows:,} {unit}, {decimal(size)} in {cache_folder()}")


def _described(found: CachedSet) -> str:
    """Describe a cached set in two lines: network, size and last use; then the transform and how it was computed."""
    about = found.about
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.used))
    if "decoded" in about:
        what = f"decoded images: {about['decoded']}  {found.rows:,} images"
        return f"{what}  {decimal(found.size)}  last used {used}\n    {_steps(str(about.get('transform', '')))}"
    network = _named(about.get("model")) or f"unknown ({found.folder.name})"
    weights = str(about.get("backbone_sha256", ""))[:8]
    computed = " ".join(str(about.get(name, "")) for name in ("device", "precision", "engine"))
    return (
        f"{network}  weights {weights}  {found.rows:,} rows  {decimal(found.size)}  last used {used}\n"
        f"    {_steps(str(about.get('transform', '')))}; {computed}"
    )


def _named(model: Any) -> str:
    return " ".join(map(str, model.values())) if isinstance(model, dict) else ""


def _steps(transform: str) -> str:
    """List the steps of a transform with their sizes, without those that every transform has."""
    steps = re.findall(r"^\s+(\w+)\((?:.*?size=\(?\[?([\d, ]+)[\])])?", transform, re.MULTILINE)
    plain = ("PILToTensor", "ToDtype", "Normalize")
    return ", ".join(f"{name} {size}".strip() for name, size in steps if name not in plain)


def clear_cache() -> None:
    """Clear the cache, except for the sets in use by a run, and print how much was freed."""
    freed, in_use = clear(cache_folder())
    kept = f"; {in_use} in use were kept" if in_use else ""
    _print(f"freed {decimal(freed)} in {cache_folder()}{kept}")


def _print(text: str) -> None:
    Console().print(printable(text), soft_wrap=True, highlight=False, markup=False)
