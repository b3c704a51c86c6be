"""What the Trainer that headstart builds does to the process it trains in."""

from __future__ import annotations

import ctypes

import pytest

from tests.helpers.commands import ended, script

GIVEN_BACK = """
import torch
from headstart.training.trainer import build_trainer


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1000


def given_back():
    block = torch.ones(64_000_000)  # 256 MB
    with_block = resident()
    del block
    return with_block - resident()


before = given_back()
build_trainer([], [], {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"})
print(before, given_back())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_on_a_cpu_freed_memory_is_kept_for_the_next_step() -> None:
    """A process of its own, as what is set there cannot be taken back."""
    result = ended(script(GIVEN_BACK))
    assert result.returncode == 0, result.stderr
    before, after = map(float, result.stdout.split())
    assert before > 200  # MB
    assert after < 20


PRODUCTS = """
import torch
from headstart.training.trainer import build_trainer

torch.set_float32_matmul_precision("high")
build_trainer([], [], {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "bf16-mixed"})
print(torch.get_float32_matmul_precision())
"""


def test_products_in_float32_keep_all_their_digits_with_mixed_precision_for_heads_are_fitted_in_it() -> None:
    result = ended(script(PRODUCTS))
    assert result.stdout == "highest\n", result.stderr
