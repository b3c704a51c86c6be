"""`data.val_fraction=0`: all images but those of test are trained on, and the last epoch is kept."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from headstart.cli.main import main
from headstart.inference.evaluate import evaluate
from headstart.models.model_folder import read_artifact
from headstart.report.data_preview import look
from headstart.report.run_report import report_again
from headstart.runs.finished import read_finished
from headstart.train import run
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.runs import (
    FEW,
    SMALL,
    TINY_RESNET,
    Train,
    composed,
    findings,
    interrupt_after,
    read_metrics,
    read_rows,
    report_words,
    tensors,
    weights,
)
from tests.helpers.session import Once
from tests.helpers.sweeps import swept

WITHOUT = ("data.val_fraction=0", "data.test_fraction=0.05")
FITTED = ("optimizer=lbfgs", "model.weights=default")
# Early stopping would end this run, and other epochs than the last would be the best, if anything were monitored.
IMPATIENT = ("callbacks.early_stopping.patience=1", "lr=1e-1", "epochs=5")


def without_val(hard: Path, to: Path) -> Path:
    """The noisy digits, those of val among those of train."""
    root = shutil.copytree(hard, to)
    for path in sorted(root.glob("val/*/*")):
        path.rename(root / "train" / path.parent.name / f"val{path.name}")
    shutil.rmtree(root / "val")
    return root


@pytest.fixture(scope="session")
def reported_without(hard: Path, made_once: Once) -> Path:
    """The run folder of a run without validation images, with its report."""

    def make(folder: Path) -> None:
        root = without_val(hard, folder.parent / "images")
        run(composed(*report_words(root, "data.val_fraction=0", *IMPATIENT)), folder)

    return made_once("reported_without/run", make)


def splits_of(folder: Path) -> dict[str, int]:
    splits = [row["split"] for row in read_rows(folder / "split.csv")]
    return {split: splits.count(split) for split in dict.fromkeys(splits)}


@pytest.mark.parametrize(
    ("words", "images"),
    [
        ((*IMPATIENT, "scheduler=cosine", "lr=auto", "data.train_per_class=null"), 1707),
        ((*TINY_RESNET, "freeze=false", "epochs=2", "callbacks.ema=0.9"), 100),
        ((*TINY_RESNET, "finetune=head_then_full", "finetune.head_epochs=1", "epochs=2", "data.train_per_class=5"), 50),
        (("model.weights=default", "finetune=auto", "epochs=2"), 100),
        ((*FITTED, "data.train_per_class=null"), 1707),
    ],
    ids=["head", "all", "stages", "auto", "fitted"],
)
def test_all_images_but_test_are_trained_on_and_the_last_epoch_is_kept(
    words: tuple[str, ...], images: int, train: Train, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    metrics = train(*WITHOUT, *words)
    assert splits_of(tmp_path / "run") == {"train": images, "test": 90}
    assert (metrics["data/train_size"], metrics["data/test_size"]) == (images, 90)
    assert not [name for name in metrics if "val" in name]
    assert metrics["epochs/best"] == metrics["epochs/run"]
    if FITTED[0] not in words:
        assert metrics["epochs/run"] == composed(*words).epochs
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert read_artifact(tmp_path / "run").description["temperature"] == 1
    assert evaluate(tmp_path / "run").metrics["test/accuracy"] == metrics["test/accuracy"]
    assert not [warning for warning in recwarn if "Total length" in str(warning.message)]


def test_a_val_folder_is_kept_for_validation(hard: Path, train: Train, tmp_path: Path) -> None:
    data = ("data=imagefolder", f"data.root={hard}", "model.weights=default", "epochs=3")
    first = train(*data, "data.val_fraction=0", "scheduler=plateau", "monitor=val/loss", folder=tmp_path / "first")
    second = train(*data, "scheduler=plateau", "monitor=val/loss", folder=tmp_path / "second")
    assert findings(first) == findings(second)
    assert first["data/val_size"] == 60


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scheduler=plateau", "scheduler=plateau lowers the rate by monitor=val/accuracy, and there is no val split"),
        (
            "monitor=val/loss",
            "monitor=val/loss: there is no val split to measure it on, because of data.val_fraction=0",
        ),
    ],
)
def test_what_follows_validation_is_named_before_anything_is_computed(
    word: str, message: str, train: Train, own_cache: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{message}.* set data.val_fraction"):
        train(*WITHOUT, "optimizer=adam", word)
    assert not own_cache.exists()


def test_a_metric_of_training_chooses_the_epoch_as_ever(train: Train) -> None:
    metrics = train(*WITHOUT, "monitor=train/loss", "scheduler=plateau", "epochs=2", "lr=10")
    assert metrics["epochs/best"] == 1, "the first epoch begins where the loss is low"


def test_a_sweep_has_nothing_to_compare(tmp_path: Path) -> None:
    result = swept(tmp_path, *SMALL, *WITHOUT, "lr=1e-3,1e-2", "epochs=1")
    assert result.returncode != 0
    assert "2 failed: a sweep compares its jobs by monitor=val/accuracy, and there is no val split" in result.stdout
    assert "compare cross-validations by folds=5" in result.stdout


def test_an_ordinary_run_returns_no_value(tmp_path: Path) -> None:
    words = (*SMALL, *FEW, "data.val_fraction=0", "data.test_fraction=0", "epochs=1")
    assert math.isnan(run(composed(*words), tmp_path))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(train: Train, tmp_path: Path) -> None:
    words = (*WITHOUT, "epochs=3", "scheduler=cosine")
    whole = train(*words, folder=tmp_path / "whole")
    interrupt_after(2, *words, folder=tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = train(*words, f"ckpt_path={last}", folder=tmp_path / "cut")
    assert findings(resumed) == findings(whole)
    expected = tensors(tmp_path / "whole")
    assert all(value.equal(expected[name]) for name, value in tensors(tmp_path / "cut").items())
    assert all(value.equal(weights(tmp_path / "whole")[name]) for name, value in weights(tmp_path / "cut").items())


# --- what reads a run ------------------------------------------------------------------------------------------


def test_the_report_is_about_test_and_says_that_nothing_was_chosen(reported_without: Path) -> None:
    for _ in range(2):
        text = (reported_without / "report" / "index.html").read_text()
        assert "test accuracy on 45 images" in text
        assert "Metrics of the model at the end of training" in text
        assert "No temperature was fitted: there are no validation images." in text
        for absent in ("stopped early", "last epoch", "by val/accuracy", "validation images:", "could not be shown"):
            assert absent not in text
        report_again(reported_without)
    finished = read_finished(reported_without)
    assert (finished.chooses_epoch, finished.stopped_early) == (False, False)
    assert len(finished.curves["train/loss"]) == 5
    assert "val/loss" not in finished.curves


def test_runs_are_listed_and_compared(reported_without: Path, reported: Path, tmp_path: Path, capsys: Any) -> None:
    main(["runs", str(reported_without.parent), "--format", "csv"])
    assert f"test/accuracy,epochs/run,time/total_s\nrun,{read_metrics(reported_without)['test/accuracy']:.6g},5," in (
        capsys.readouterr().out
    )
    main(["report", str(reported_without), str(reported), "--out", str(tmp_path)])
    page = (tmp_path / "index.html").read_text()
    assert "2 runs, on the same 45 test images" in page
    assert page.count("val loss") == 1
    copy = shutil.copytree(reported_without, tmp_path / "copy")
    main(["report", str(reported_without), str(copy), "--out", str(tmp_path)])
    page = (tmp_path / "index.html").read_text()
    assert "val loss" not in page
    assert "train/loss by epoch" in page


def test_a_run_of_training_images_alone_has_no_report_and_is_evaluated_on_them(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ("data.val_fraction=0", "data.test_fraction=0", "data.train_per_class=null", "epochs=1", "report=true")
    metrics = train(*words)
    assert metrics["data/train_size"] == 1797
    assert "there is no report: it is about images of test or val, and there are none" in caplog.text
    with pytest.raises(DataError, match="this run has no images of val or test, and a report is about those"):
        report_again(tmp_path / "run")
    evaluation = evaluate(tmp_path / "run")
    assert (evaluation.split, evaluation.metrics["train/accuracy"]) == ("train", metrics["train/accuracy"])


def test_the_data_are_shown_before_training(tmp_path: Path) -> None:
    page = look(composed(*WITHOUT), tmp_path)
    assert "val" not in {split for row in read_rows(tmp_path / "counts.csv") for split in row}
    assert page.exists()
