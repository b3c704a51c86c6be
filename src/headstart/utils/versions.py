"""Versions of the packages that results depend on."""

from __future__ import annotations

import functools
import importlib.metadata

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
    return {name: version for name in PACKAGES if (version := _version(name))}


@functools.cache  # what this process has imported stays the same, also if a package is installed in the meantime
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
