"""`headstart cache`: list or clear cached features, decoded images and facts, without importing torch."""

from __future__ import annotations

import argparse
import re
import time

from rich.console import Console
from rich.filesize import decimal

from headstart.cache.disk import FACTS, FEATURES, IMAGES, CachedSet, cache_folder, cached_sets, clear
from headstart.utils.console import printable

HELP = "list or clear the cached features of frozen backbones and decoded images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if arguments.action == "clear":
        clear_cache()
    else:
        list_cache()
    return 0


def list_cache() -> None:
    """Print the contents of the cache: features, decoded images, then facts, each the most recently used first."""
    for kind, unit in ((FEATURES, "rows"), (IMAGES, "images"), (FACTS, "facts")):
        sets = cached_sets(cache_folder(), kind)
        for cached in sets:
            _print(_describe(cached))
        rows, size = sum(cached.rows for cached in sets), sum(cached.size for cached in sets)
        if sets or kind == FEATURES:
            _print(f"{rows:,} {unit}, {decimal(size)} in {cache_folder()}")


def _describe(cached: CachedSet) -> str:
    """Describe a cached set in two lines: network, size and last use; then the transform and how it was computed."""
    description = cached.description
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(cached.used))
    steps = _format_transform(str(description.get("transform", "")))
    if "decoded" in description:
        title, unit, computed = f"decoded images: {description['decoded']}", "images", ""
    elif "facts" in description:
        title, unit = f"facts of checked images: {description['facts']}", "images"
        computed = f"Pillow {description.get('pillow', '')}"
    else:
        model = description.get("model")
        network = " ".join(map(str, model.values())) if isinstance(model, dict) else ""
        weights = str(description.get("backbone_sha256", ""))[:8]
        title, unit = f"{network or f'unknown ({cached.folder.name})'}  weights {weights}", "rows"
        computed = "; " + " ".join(str(description.get(name, "")) for name in ("device", "precision", "engine"))
    return f"{title}  {cached.rows:,} {unit}  {decimal(cached.size)}  last used {used}\n    {steps}{computed}"


def _format_transform(transform: str) -> str:
    """List the steps of a transform with their sizes, without those that every transform has."""
    steps = re.findall(r"^\s+(\w+)\((?:.*?size=\(?\[?([\d, ]+)[\])])?", transform, re.MULTILINE)
    common = ("PILToTensor", "ToDtype", "Normalize")
    return ", ".join(f"{name} {size}".strip() for name, size in steps if name not in common)


def clear_cache() -> None:
    """Clear the cache, except for the sets in use by a run, and print how much was freed."""
    freed, in_use = clear(cache_folder())
    skipped = f"; {in_use} in use were not cleared" if in_use else ""
    _print(f"freed {decimal(freed)} in {cache_folder()}{skipped}")


def _print(text: str) -> None:
    Console().print(printable(text), soft_wrap=True, highlight=False, markup=False)
