"""What the tests of inference share: a loaded model, and the command `headstart predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headstart.inference.model import Model

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    import headstart

    return headstart.load(trained, "cpu")


@pytest.fixture
def predict(trained: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs the command in this process: its exit status, standard output and standard error."""
    from headstart.cli.main import main

    def predict(*arguments: object, model: Path = trained) -> tuple[int, str, str]:
        capsys.readouterr()
        status = 0
        try:
            main(["predict", str(model), "--device", "cpu", *map(str, arguments)])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return predict
