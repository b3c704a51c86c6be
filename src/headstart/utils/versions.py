"""Versions of the packages that results depend on."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

PACKAGES = (
    "headstart",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "timm",
    "scikit-learn",
    "numpy",
    "pillow",
    "matplotlib",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on; packages that are not installed are left out."""
    installed = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
