"""Files are written as a whole or not at all, and only regular files are read."""

from __future__ import annotations

import csv
import io
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from headstart.training.checkpoints import write_checkpoint
from headstart.utils.errors import DiskError
from headstart.utils.files import (
    csv_text,
    csv_value,
    read_json,
    regular_file,
    remove_unfinished,
    write_atomically,
    write_tensors,
    write_text,
)
from tests.helpers.commands import ended, script
from tests.helpers.disk import limited

KILLED_INSIDE = """
import os, signal, sys
from pathlib import Path
from headstart.utils.files import write_atomically
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
    for name in ("file", "filed"):
        assert ended(script(KILLED_INSIDE, tmp_path / name)).returncode == -signal.SIGKILL
    assert path.read_text() == "one"
    write_text(path, "two")
    assert path.read_text() == "two"
    remove_unfinished(path)  # of this file alone
    assert sorted(path.name.rpartition(".")[0] for path in tmp_path.iterdir()) == ["", ".filed"]


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a text": lambda path, value: write_text(path, str(value) * 100_000),
    "tensors": lambda path, value: write_tensors(path, {"a": torch.full((25_000,), float(value))}),
    "a checkpoint": lambda path, value: write_checkpoint(
        path, {"state_dict": {"a": torch.full((25_000,), float(value))}}
    ),
}


@pytest.mark.parametrize("fraction", [0.0, 1e-5, 0.001, 0.5, 0.99999])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_up_at_any_byte_leaves_the_former_file(writer: str, fraction: float, tmp_path: Path) -> None:
    """At none, at the first byte, within a header, in the middle and at the last byte."""
    path = tmp_path / "folder" / "file"
    WRITERS[writer](path, 1)
    former = path.read_bytes()
    message = r"file cannot be written: it needs 0\.[12] MB, and [\d,.]+ MB are free there .* What was there before is "
    with limited(int(fraction * len(former))), pytest.raises(DiskError, match=f"{message}whole"):
        WRITERS[writer](path, 2)
    assert path.read_bytes() == former
    assert list(path.parent.iterdir()) == [path]
    with limited(len(former)):
        WRITERS[writer](path, 2)
    assert path.read_bytes() != former


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
def test_a_real_disk_that_fills_up(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", tmp_path], check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        for writer in WRITERS.values():
            path = tmp_path / "file"
            writer(path, 1)
            former = path.read_bytes()
            (tmp_path / "others").write_bytes(bytes(250_000))
            message = r"file cannot be written: it needs 0\.1 MB, and [\d.]+ [kM]B are free there"
            with pytest.raises(DiskError, match=message):
                writer(path, 2)
            assert path.read_bytes() == former
            (tmp_path / "others").unlink()
            path.unlink()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_tensors_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": torch.arange(3)}, {"about": "them"})
    assert load_file(tmp_path / "file")["a"].tolist() == [0, 1, 2]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "deep").write_text("[" * 100_000)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name, kind in (("pipe", "a pipe"), ("device", "a device"), ("socket", "a socket"), (".", "a folder")):
        with pytest.raises(OSError, match=f"{kind}, not a regular file"):
            regular_file(tmp_path / name)
    with pytest.raises(ValueError, match="it is nested too deeply"):
        read_json(tmp_path / "deep")
    with pytest.raises(OSError, match="1,073,741,824 bytes, more than headstart writes"):
        read_json(tmp_path / "large")
    assert read_json(tmp_path / "link") == {}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_no_text_in_a_csv_is_a_formula(texts: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([[text, "", "x"] for text in texts]), newline="")))
    assert [csv_value(row[0]) for row in rows] == texts
    for cell, *_ in rows:
        assert not cell.startswith(("=", "@", "\t", "\r"))


def test_numbers_in_a_csv_stay_numbers() -> None:
    cells = [-1, -0.5, "-1", "+1e-3", "-a", "=1+1", "+49 170", "@home", "'=1", "it's"]
    assert next(csv.reader([csv_text([cells])])) == [
        *("-1", "-0.5", "-1", "+1e-3", "'-a", "'=1+1", "'+49 170", "'@home", "''=1", "it's")
    ]


def test_files_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "text", "one")
    write_tensors(tmp_path / "tensors", {"a": torch.zeros(1)})  # which safetensors lets only their owner read
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1
