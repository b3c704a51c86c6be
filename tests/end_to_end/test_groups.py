"""Groups from the command line to the model: what a random split hides, and runs that are used again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstart.inference.evaluate import evaluate
from headstart.train import run
from headstart.utils.errors import ModelError
from tests.helpers.commands import command
from tests.helpers.images import planted_groups
from tests.helpers.runs import SMALL, Train, composed, figures, interrupt_after, read_metrics, read_rows
from tests.helpers.session import Once

PATTERN = r"data.group_pattern='(scene\d+)_'"


@pytest.fixture(scope="module")
def scenes(made_once: Once) -> Path:
    """Forty scenes whose background alone tells the class."""
    return made_once("scenes", planted_groups)


def words(root: Path, *more: str) -> tuple[str, ...]:
    data = ("data=imagefolder", f"data.root={root}", "data.val_fraction=0.2", "data.test_fraction=0.3")
    return (*data, "model.weights=default", "lr=1e-2", "epochs=25", *more)


def test_groups_show_what_a_random_split_hides(scenes: Path, train: Train, tmp_path: Path) -> None:
    """A network that knows the backgrounds of scenes, and nothing of cats and dogs."""
    at_random = train(*words(scenes), folder=tmp_path / "random")
    by_groups = train(*words(scenes, PATTERN), folder=tmp_path / "groups")
    assert at_random["test/accuracy"] > 0.95
    assert by_groups["test/accuracy"] < 0.7
    assert by_groups["data/test_size"] == at_random["data/test_size"] == 96


def test_a_run_with_groups_is_recorded_evaluated_and_resumed(scenes: Path, tmp_path: Path) -> None:
    overrides = words(scenes, PATTERN, "epochs=3")
    run(composed(*SMALL, *overrides), tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "split.csv")
    assert {row["group"] for row in rows} == {f"scene{index}" for index in range(40)}
    assert len({(row["group"], row["split"]) for row in rows}) == 40
    description = json.loads((tmp_path / "whole" / "model" / "model.json").read_text())
    assert description["data"]["group_pattern"] == r"(scene\d+)_"
    evaluation = evaluate(tmp_path / "whole")  # the same split, by the pattern that the run has recorded
    whole = read_metrics(tmp_path / "whole")
    assert evaluation.metrics["test/accuracy"] == whole["test/accuracy"]
    interrupt_after(1, *overrides, folder=tmp_path / "cut")
    checkpoint = f"ckpt_path={tmp_path / 'cut' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(ModelError, match="cannot be resumed: its split is"):
        run(composed(*SMALL, *words(scenes, "epochs=3"), checkpoint), tmp_path / "cut")
    run(composed(*SMALL, *overrides, checkpoint), tmp_path / "cut")
    assert figures(read_metrics(tmp_path / "cut")) == figures(whole)


def test_the_shell_takes_the_quotes_off(scenes: Path, tmp_path: Path) -> None:
    overrides = words(
        scenes, r"data.group_pattern=(scene\d+)_", "epochs=1", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"
    )
    result = command(*overrides)
    assert result.returncode == 0, result.stderr
    assert "40 groups, none in two splits" in result.stdout + result.stderr
    settings = (tmp_path / "run" / "config.yaml").read_text()
    assert r"group_pattern: (scene\d+)_" in settings
    again = command(
        "--config-path", str(tmp_path / "run"), "--config-name", "config", f"hydra.run.dir={tmp_path / '2'}"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "2" / "split.csv").read_text() == (tmp_path / "run" / "split.csv").read_text()
