"""The notebooks run from top to bottom, show pictures, and are stored without outputs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.commands import python
from tests.helpers.runs import ROOT

NOTEBOOKS = ROOT / "notebooks"
SECONDS = 600  # for a cell; on idle cores the longest one takes fifteen
# Notebook, its parameter that is not left to itself, and the fixture that gives it.
CASES = [
    ("01_first_run", None, None),
    ("02_look_inside_a_run", None, None),
    ("02_look_inside_a_run", "RUN", "trained"),
    ("03_your_own_photos", None, None),
    ("03_your_own_photos", "PHOTOS", "folders"),
]


def with_parameters(notebook: Any, **values: Any) -> Any:
    """Sets variables below the cell that is tagged "parameters", as papermill does."""
    index = next(index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(lines))
    return notebook


@pytest.mark.parametrize(("name", "parameter", "fixture"), CASES)
def test_a_notebook_runs_and_shows_pictures(
    name: str,
    parameter: str | None,
    fixture: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))  # nobody's own kernels and start-up files
    kernel = tmp_path / "JUPYTER_DATA_DIR" / "kernels" / "warm" / "kernel.json"
    command = [python(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": command, "display_name": "warm", "language": "python"}))
    values: dict[str, Any] = {"RUNS": str(tmp_path / "runs")}
    if name == "01_first_run":
        values["EPOCHS"] = 4
    if name == "03_your_own_photos":  # its own network, for a few epochs
        values["MODEL"] = ["model=glyphnet", "freeze=false", "data.image_size=48", "epochs=4"]
    if parameter and fixture:
        values[parameter] = str(request.getfixturevalue(fixture))
    notebook = with_parameters(jupytext.read(NOTEBOOKS / f"{name}.py"), **values)

    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="warm", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()  # raises if a cell fails, with what it says

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert [output.text for output in outputs if "Traceback" in output.get("text", "")] == []


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == {name for name, *_ in CASES}


def test_no_notebook_is_kept_with_its_outputs() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, check=True, capture_output=True, text=True)
    for path in listed.stdout.splitlines():
        cells = nbformat.read(ROOT / path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), f"{path}: clear its outputs, or keep it as text"
