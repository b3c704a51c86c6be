"""Rows of a feature set, by number."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np

from headstart.cache.segments import Key, key_of
from headstart.cache.store import FeatureStore

WIDTH = 7
ABOUT = {"model": {"library": "here", "name": "tiny"}}


def key(number: int, view: int = 0) -> Key:
    return key_of(hashlib.sha256(str(number).encode()).digest(), view)


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


def opened(folder: Path) -> closing[FeatureStore]:
    return closing(FeatureStore(folder, WIDTH, "float32", ABOUT))


def fill(folder: Path, numbers: range) -> None:
    with opened(folder) as store:
        store.append([key(n) for n in numbers], np.stack([row(n) for n in numbers]))
