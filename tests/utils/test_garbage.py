"""What garbage collections leave out."""

from __future__ import annotations

import subprocess

from tests.helpers.commands import python

IMPORTED = """
import gc
import torch
from headstart.utils.garbage import freeze_imports

before = len(gc.get_objects())
freeze_imports()
left, frozen = len(gc.get_objects()), gc.get_freeze_count()
kept = [[]]
freeze_imports()
print(before, left, gc.get_freeze_count() == frozen, any(item is kept for item in gc.get_objects()))
"""


def test_a_collection_leaves_out_what_was_imported_but_not_what_a_run_makes() -> None:
    """In a cold process, as the others of the tests are forked from one that has done this."""
    result = subprocess.run([python(cold=True), "-c", IMPORTED], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    before, left, once, collected = result.stdout.split()
    assert int(left) < 0.05 * int(before)
    assert (once, collected) == ("True", "True")
