"""Damaged and malicious variants of valid files."""

from __future__ import annotations

import json
import random
from typing import Any

TOKENS = (
    *(bytes([byte]) for byte in b"\x00\xff\n\r\"',;\t{}[]:-"),
    *(b"&a", b"*a", b"!!python", b"${oc.env:HOME}", b"nan", b"1e999", b"-1", b"9" * 5000, b"null", b"true"),
    *(b"../../etc/passwd", b"\xef\xbb\xbf", b"\xff\xfe"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 10**11, 10**400, 0.5, -1e300, [], {}, [1], {"a": 1}, [[[]]]),
    *("", "a", "../..", "\x1b[2J", "\udcff", "9" * 5000, "vit_h_14", ["a"] * 1000),
    {"name": "mlp", "hidden": 10**9, "dropout": 0.1},
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few changes: cut off, turned over, put in, taken out or doubled."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        position = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                del changed[position:]
            case 1 if position < len(changed):
                changed[position] ^= 1 << rng.randrange(8)
            case 2:
                changed[position:position] = rng.choice(TOKENS)
            case 3:
                del changed[position : position + rng.randrange(1, 20)]
            case 4:
                changed[position:position] = changed[position : position + rng.randrange(1, 200)]
            case _:
                changed[position : position + 4] = rng.randbytes(4)
    return bytes(changed)


def mutated_values(values: Any, rng: random.Random) -> Any:
    """Plain values in which one is another, missing or too many."""
    values = json.loads(json.dumps(values))
    inner = values
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return values
        key = rng.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            continue
        match rng.randrange(4):
            case 0:
                del inner[key]
            case 1 if isinstance(inner, dict):
                inner[rng.choice(("weights", "num_features", "a", "hidden"))] = rng.choice(VALUES)
            case _:
                inner[key] = rng.choice(VALUES)
        return values
