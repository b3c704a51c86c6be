"""Failures from outside: full disks, kills, parents that die, and names with control characters."""

from __future__ import annotations

import io
import logging
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.cli.predict import write_table
from headstart.inference.model import Prediction
from headstart.training.checkpoints import load_checkpoint
from headstart.utils import errors
from headstart.utils.console import Formatter, guard_logs, one_line, printable
from headstart.utils.errors import DataError, DiskError, ModelError
from headstart.utils.tables import show_rows
from tests.helpers.commands import command, ended, script, started
from tests.helpers.disk import limited
from tests.helpers.images import class_folders
from tests.helpers.kill_points import killed_at
from tests.helpers.processes import living
from tests.helpers.runs import FEW, SMALL, TINY_RESNET, Train, figures, read_metrics

CLEARS = "\x1b[2J"  # the screen

# --- a disk that is full -------------------------------------------------------------------------------------


def test_a_run_whose_disk_fills_up_keeps_its_checkpoint_and_is_resumed(train: Train, tmp_path: Path) -> None:
    overrides, last = ("freeze=false", *FEW), tmp_path / "half" / "checkpoints" / "last.ckpt"
    once = train(*overrides, "epochs=2", folder=tmp_path / "once")
    train(*overrides, "epochs=1", folder=tmp_path / "half")
    former = last.read_bytes()
    resume = (*overrides, "epochs=2", f"ckpt_path={last}")
    full = rf"\.ckpt cannot be written: it needs \d\.\d MB, and .*whole\. Make room\. Resume by ckpt_path={last}"
    with limited(len(former) // 2), pytest.raises(DiskError, match=full):
        train(*resume, folder=tmp_path / "half")
    assert last.read_bytes() == former
    assert figures(train(*resume, folder=tmp_path / "half")) == figures(once)
    assert not [path for path in last.parent.iterdir() if path.suffix != ".ckpt"]


def test_a_disk_that_is_full_from_the_beginning(train: Train, tmp_path: Path) -> None:
    with (
        limited(50_000),
        pytest.raises(DiskError, match=r"(last|best)\.ckpt cannot .* No epoch was finished: start the run again\."),
    ):
        train("freeze=false", "epochs=1", *FEW)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_what_a_library_could_not_write_is_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        with limited(10), (tmp_path / "events").open("wb", buffering=0) as file:
            file.write(bytes(10))
            file.write(bytes(10))
    except OSError as error:
        error.filename = str(tmp_path / "events")
        errors.excepthook(type(error), error, error.__traceback__)
    message = capsys.readouterr().err
    assert message.startswith(f"headstart: {tmp_path / 'events'} cannot be written: ")
    assert "Traceback" not in message


def test_a_log_that_cannot_be_written_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = logging.FileHandler(tmp_path / "train.log")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    guard_logs()
    with limited(10):
        handler.emit(logging.LogRecord("a", logging.INFO, "b", 1, "longer than there is room", (), None))
        assert capsys.readouterr().err == ""
        handler.emit(logging.LogRecord("a", logging.INFO, "b", 1, "%d", ("no number",), None))
        assert "Logging error" in capsys.readouterr().err
    handler.close()


def test_a_run_that_is_killed_inside_a_checkpoint_keeps_the_former_one(tmp_path: Path) -> None:
    overrides = (*SMALL, "freeze=false", *FEW, "epochs=3")
    resumed, once = tmp_path / "killed", tmp_path / "once"
    last = resumed / "checkpoints" / "last.ckpt"
    killed = command(*overrides, f"hydra.run.dir={resumed}", environment=killed_at("inside a checkpoint", 3))
    assert killed.returncode != 0
    (unfinished,) = [path for path in last.parent.iterdir() if path.suffix != ".ckpt"]  # what it was writing
    assert torch.load(last, weights_only=True)["epoch"] in (0, 1)
    load_checkpoint(last)
    for folder, more in ((resumed, [f"ckpt_path={last}"]), (once, [])):
        result = command(*overrides, f"hydra.run.dir={folder}", *more)
        assert result.returncode == 0, result.stderr
    metrics = [read_metrics(folder) for folder in (resumed, once)]
    assert figures(metrics[0]) == figures(metrics[1])
    assert not unfinished.exists()


# --- parents that die ----------------------------------------------------------------------------------------

WAITS = """
import os, signal, sys
from headstart.data.workers import exit_with_parent
child = os.fork()
if child == 0:
    exit_with_parent(0)
    os.read(os.pipe()[0], 1)  # for ever
print(child, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_waits_for_ever_ends_with_its_parent() -> None:
    process = script(WAITS)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert living(child)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.close()
    end = time.monotonic() + 60
    while living(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not living(child)
    process.kill()
    process.wait()


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "images", images=40)
    overrides = ("data=imagefolder", f"data.root={images}", *TINY_RESNET, *SMALL, "freeze=false", "data.num_workers=2")
    killed = killed_at("an epoch begins", 2, who="process")
    process = started(*overrides, "epochs=3", f"hydra.run.dir={tmp_path / 'run'}", environment=killed)
    ended(process)  # its output ends when all processes that it has started are gone
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()  # of the first epoch, which had workers


# --- terminals -----------------------------------------------------------------------------------------------


def test_control_characters_are_escaped() -> None:
    assert printable(f"a{CLEARS}b\r\n\tc\x07\x9b1m \u202e") == "a\\x1b[2Jb\\r\n\\tc\\x07\\x9b1m \\u202e"
    assert one_line("a\nb") == "a\\nb"
    assert one_line("caf\udce9") == "caf\\udce9"  # a byte that is not UTF-8
    for text in ("Zürich ✓ 日本語", "نیم\u200cفاصله", "👩\u200d🔬"):
        assert printable(text) == text
    record = logging.LogRecord("a", logging.INFO, "b", 1, "a class called %s", (CLEARS,), None)
    assert Formatter(logging.Formatter("%(message)s")).format(record) == "a class called \\x1b[2J"


def test_tables_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([["run", CLEARS], [f"x{CLEARS}", "1"]])
    table = io.StringIO()
    answers: Any = [(f"{CLEARS}.jpg", Prediction(CLEARS, 1.0, ((CLEARS, 1.0),))), (f"{CLEARS}2", DataError("no"))]
    write_table(table, iter(answers), width=11, class_names=(CLEARS, "dog"))
    for shown in (capsys.readouterr().out, table.getvalue()):
        assert "\x1b" not in shown
        assert "\\x1b[2J" in shown
    header, first, _ = table.getvalue().splitlines()
    assert first.index("\\x1b[2J  100") == header.index("class")


def test_names_in_the_data_reach_neither_terminal_nor_log(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "images", (f"{CLEARS}cat", "dog"), images=5)
    (images / "dog" / f"{CLEARS}.txt").touch()
    folder = tmp_path / "run"
    overrides = ("data=imagefolder", f"data.root={images}", *TINY_RESNET, *SMALL, "epochs=1")
    result = command(*overrides, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    assert "execution whitelist" not in result.stderr  # Hydra's warning of configurations that name classes
    (images / "dog" / f"{CLEARS}.png").write_bytes(b"no image")
    broken = command(*overrides, f"hydra.run.dir={tmp_path / 'broken'}")
    assert broken.returncode == 1
    for text in (result.stdout, broken.stderr, (folder / "train.log").read_text()):
        assert "\x1b" not in text
        assert "\\x1b[2J" in text


# --- before any image ----------------------------------------------------------------------------------------


def test_an_unknown_block_is_named_before_any_image_is_read(train: Train, tmp_path: Path) -> None:
    images = class_folders(tmp_path / "images", images=4)
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ModelError, match="freeze=layer9: the backbone has no such block. .* Its blocks are .*layer1"):
        train("data=imagefolder", f"data.root={images}", *TINY_RESNET, "freeze=layer9", "data.cache=decoded")
