"""Files are written whole or not at all."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from headstart.record import write_atomically, write_text
from tests.helpers.commands import ended, script

KILLED_INSIDE = """
import os, signal, sys
from pathlib import Path
from headstart.record import write_atomically
def half(path):
    path.write_text("tw")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), half)
"""


def test_what_fails_while_it_is_written_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_text(path, "one")

    def half(temporary: Path) -> None:
        temporary.write_text("tw")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]  # nothing half written beside it


def test_a_process_that_is_killed_while_it_writes_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "one")
    assert ended(script(KILLED_INSIDE, path)).returncode == -signal.SIGKILL
    assert path.read_text() == "one"
    write_text(path, "two")
    assert path.read_text() == "two"


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "one")
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "plain")]
    assert modes[0] == modes[1]
