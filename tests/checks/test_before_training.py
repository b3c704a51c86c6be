"""The check of the files before training: warn, stop, off."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from headstart.cross_validation.run import cross_validate
from headstart.report.run_report import write_report
from headstart.train import run
from headstart.utils.errors import DataError
from tests.helpers.images import class_folders
from tests.helpers.runs import TINY_RESNET, Train, composed, small


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Two classes with a conflict, and a picture twice."""
    root = class_folders(tmp_path / "copied", images=12)
    shutil.copyfile(root / "cat" / "0.jpg", root / "dog" / "0.jpg")
    shutil.copyfile(root / "cat" / "1.jpg", root / "cat" / "2.jpg")
    return root


def words(root: Path, *more: str) -> list[str]:
    data = ("data=imagefolder", f"data.root={root}", "data.test_fraction=0.3", "data.val_fraction=0.2")
    return [*data, *TINY_RESNET, "epochs=1", *more]


def lines_on(caplog: pytest.LogCaptureFixture, title: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(title)]


def test_warn_says_what_is_wrong_and_records_it(copied: Path, train: Train, tmp_path: Path, caplog: Any) -> None:
    train(*words(copied), folder=tmp_path / "run")
    (line,) = lines_on(caplog, "The same picture with different labels")
    assert ": 1, such as " in line
    assert "cat/0.jpg" in line
    assert "dog/0.jpg" in line
    assert line.endswith("`headstart check` shows them")
    counts = json.loads((tmp_path / "run" / "check.json").read_text())
    assert counts["conflict"] == 1
    assert counts["copy"] == 2
    page = write_report(tmp_path / "run", None).read_text()
    assert "Check of the files before training" in page
    assert "<code>conflict</code> 1," in page


def test_stop_stops_before_anything_is_trained(copied: Path, train: Train, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"check=stop.*The same picture with different labels: 1; .*check=warn trains"):
        train(*words(copied, "check=stop"), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_stop_trains_on_images_without_errors(folders: Path, train: Train, tmp_path: Path) -> None:
    train(*words(folders, "check=stop"), folder=tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "check.json").read_text())
    assert {"leak", "copy", "conflict", "unreadable"}.isdisjoint(counts)


def test_off_looks_at_nothing(copied: Path, train: Train, tmp_path: Path, caplog: Any) -> None:
    train(*words(copied, "check=off"), folder=tmp_path / "run")
    assert lines_on(caplog, "The same picture") == []
    assert not (tmp_path / "run" / "check.json").exists()


def test_images_that_are_not_files_are_not_checked(finished: Path) -> None:
    assert not (finished / "check.json").exists()


def test_jobs_of_a_sweep_check_the_same_images_once(copied: Path, tmp_path: Path, caplog: Any) -> None:
    for seed in (0, 1):
        run(composed(*small(*words(copied, f"seed={seed}"))), tmp_path / str(seed), sweep=True)
    assert len(lines_on(caplog, "The same picture with different labels")) == 1
    assert json.loads((tmp_path / "1" / "check.json").read_text())["conflict"] == 1


def test_folds_are_checked_together_and_before_them(copied: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    cross_validate(composed(*small(*words(copied, "folds=2"))), tmp_path / "run")
    messages = [record.getMessage() for record in caplog.records]
    assert len(lines_on(caplog, "The same picture with different labels")) == 1
    first = next(index for index, message in enumerate(messages) if message.startswith("The same picture"))
    assert first < messages.index("fold 1 of 2")
    assert json.loads((tmp_path / "run" / "check.json").read_text())["conflict"] == 1
    assert not (tmp_path / "run" / "folds" / "1" / "check.json").exists()
