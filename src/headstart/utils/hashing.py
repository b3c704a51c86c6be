"""SHA-256 of files, of modules and of plain values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

BLOCK = 2**20  # bytes that are read at once


def file_sha256(path: str | Path) -> bytes:
    """Compute the SHA-256 of a file, as 32 bytes."""
    # For a small file, `hashlib.file_digest` takes five times as long: each call gives another thread its turn.
    digest, file = hashlib.sha256(), os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        while block := os.read(file, BLOCK):
            digest.update(block)
    finally:
        os.close(file)
    return digest.digest()


def module_sha256(module: nn.Module) -> str:
    """Compute the SHA-256, in hexadecimal, of all parameters and buffers: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        if values.numel():
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def description_sha256(description: Mapping[str, Any]) -> str:
    """Compute the SHA-256, in hexadecimal, of plain values that JSON can represent; the order of keys is ignored."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
