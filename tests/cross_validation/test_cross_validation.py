"""`folds=K`: an answer for every image from a model that has not seen it, then one model on everything."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.cli.main import main
from headstart.cross_validation.run import run
from headstart.data.build import open_images
from headstart.report.run_report import report_again
from headstart.report.statistics import wilson
from headstart.runs.finished import read_finished
from headstart.runs.predictions import read_evaluation
from headstart.sweeps.run_name import run_name
from headstart.training.calibration import fit_temperature
from headstart.utils.errors import ConfigError, DataError
from headstart.utils.statistics import t_interval
from tests.helpers.commands import command
from tests.helpers.kill_points import killed_at
from tests.helpers.runs import (
    FEW,
    SMALL,
    Train,
    composed,
    findings,
    read_metrics,
    read_rows,
    report_words,
    weights,
)
from tests.helpers.session import Once
from tests.helpers.sweeps import composed_with_hydra, rows, swept

# The best epochs of the folds are the third, the third and the second.
DIGITS = (*SMALL, *FEW, "epochs=6", "scheduler=cosine", "lr=3e-2", "folds=3")


@pytest.fixture(scope="session")
def reported_folds(hard: Path, made_once: Once) -> Path:
    """A cross-validation of data with an official val and test split, and its report."""
    words = report_words(hard, "folds=3", "epochs=2")
    return made_once("reported_folds/run", lambda folder: run(composed(*words), folder))


@pytest.fixture(scope="session")
def digit_folds(made_once: Once) -> Path:
    """A cross-validation of digits that nothing has interrupted."""
    return made_once("digit_folds/run", lambda folder: run(composed(*DIGITS), folder))


def splits_of(folder: Path) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for row in read_rows(folder / "split.csv"):
        splits.setdefault(row["split"], []).append(row["image"])
    return splits


def written(folder: Path) -> Iterator[tuple[str, int]]:
    """The files of a folder, and when they were written."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".log" and path.name != ".lock":
            yield str(path.relative_to(folder)), path.stat().st_mtime_ns


# --- what it leaves ------------------------------------------------------------------------------------------


def test_each_image_has_the_answer_of_a_model_that_has_not_seen_it(reported_folds: Path, hard: Path) -> None:
    answers = read_rows(reported_folds / "evaluation" / "out_of_fold" / "predictions.csv")
    held_out = {str(hard / name): fold for fold in "123" for name in splits_of(reported_folds / "folds" / fold)["test"]}
    assert {row["image"]: row["fold"] for row in answers} == held_out
    assert len(answers) == len(held_out) == 120
    for fold in "123":
        own = [row for row in answers if row["fold"] == fold]
        predictions = headstart.load(reported_folds / "folds" / fold).predict([row["image"] for row in own])
        assert [prediction.class_name for prediction in predictions] == [row["predicted"] for row in own]


def test_an_official_test_split_stays_out_of_the_folds_and_is_answered_by_the_final_model(reported_folds: Path) -> None:
    final, metrics = splits_of(reported_folds), read_metrics(reported_folds)
    everything = sorted(name for fold in "123" for name in splits_of(reported_folds / "folds" / fold)["test"])
    assert sorted(final["train"]) == everything
    assert final.keys() == {"train", "test"}
    assert len(final["test"]) == 45
    assert not set(final["test"]) & set(everything)
    assert metrics["data/test_size"] == 45
    assert metrics["test/accuracy"] == read_metrics(reported_folds / "evaluation" / "test")["test/accuracy"]


def test_the_final_model_is_trained_for_as_long_as_was_best_in_the_folds_on_the_same_schedule(
    digit_folds: Path,
) -> None:
    final, folds = read_finished(digit_folds), [read_finished(digit_folds / "folds" / fold) for fold in "123"]
    best = [fold.metrics["epochs/best"] for fold in folds]
    assert final.metrics["epochs/run"] == final.metrics["epochs/best"] == np.median(best) == 3
    assert [fold.metrics["epochs/run"] for fold in folds] == [6, 6, 6]
    assert final.curves["lr-Adam"] == folds[0].curves["lr-Adam"][:3]
    assert not final.stopped_early
    assert not [name for name in final.metrics if name.startswith(("val/", "data/val", "last_epoch"))]


@pytest.mark.parametrize("words", [("data.val_fraction=0", "monitor=val/loss"), ("callbacks.checkpoint=false",)])
def test_where_the_folds_choose_no_epoch_the_final_model_is_trained_for_as_many(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    run(composed(*DIGITS[:-1], "epochs=2", "folds=2", *words), tmp_path)
    assert read_metrics(tmp_path)["epochs/run"] == 2
    assert ("val" in splits_of(tmp_path / "folds" / "1")) == ("data.val_fraction=0" not in words)


def test_names_that_look_grouped_are_warned_of_if_folds_divide_them(tmp_path: Path) -> None:
    for name, colour in (("cats", "red"), ("dogs", "blue")):
        (tmp_path / name).mkdir()
        for index in range(60):
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{name}{index // 5:03}_{index % 5}.png")
    words = ("data=imagefolder", f"data.root={tmp_path}", "folds=3")
    assert any("file names look as if images belonged together in 24 groups" in note for note in notes_of(*words))
    assert not any("file names look" in note for note in notes_of(*words, r"data.group_pattern='([a-z]+\d+)_'"))


def notes_of(*overrides: str) -> Sequence[str]:
    return open_images(composed(*overrides).data).notes


def test_metrics_over_the_folds(digit_folds: Path) -> None:
    metrics = read_metrics(digit_folds)
    answers = read_evaluation(digit_folds / "evaluation" / "out_of_fold")
    correct = int((answers.predicted == answers.labels).sum())
    assert metrics["out_of_fold/accuracy"] == pytest.approx(correct / 1797, abs=1e-6)
    assert (metrics["folds/low/accuracy"], metrics["folds/high/accuracy"]) == pytest.approx(
        wilson(correct, 1797), abs=1e-6
    )
    for name in ("accuracy", "loss", "macro_accuracy", "top5_accuracy"):
        values = [read_metrics(digit_folds / "folds" / fold)[f"test/{name}"] for fold in "123"]
        assert [metrics[f"folds/{fold}/{name}"] for fold in "123"] == values
        assert metrics[f"folds/mean/{name}"] == pytest.approx(np.mean(values), abs=1e-6)
        assert metrics[f"folds/std/{name}"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        if "loss" in name or "macro" in name:
            bounds = metrics[f"folds/low/{name}"], metrics[f"folds/high/{name}"]
            assert bounds == pytest.approx(t_interval(values), abs=1e-6)
    assert metrics["out_of_fold/loss"] == pytest.approx(float(answers.losses.mean()), abs=1e-6)
    assert metrics["time/total_s"] > metrics["time/folds_s"] > 0
    assert headstart.load(digit_folds).temperature == answers.temperature


def test_a_fold_is_the_ordinary_run_that_its_keys_describe(digit_folds: Path, train: Train) -> None:
    assert findings(train(*DIGITS, "data.fold=2")) == findings(read_metrics(digit_folds / "folds" / "2"))


def test_the_report_has_the_folds_and_the_answers(reported_folds: Path) -> None:
    page = reported_folds / "report" / "index.html"
    for _ in range(2):
        text = re.sub(r"<[^>]*>", " ", page.read_text())
        assert re.search(r"out-of-fold accuracy on 120 images", text)
        assert re.search(r"Cross-validation\s+fold\s+loss\s+accuracy\s+macro accuracy\s+1 ", text)
        assert re.search(r"mean ± std\s+[\d.]+ ± [\d.]+\s+[\d.]+% ± [\d.]+%", text)
        assert "out-of-fold, which the temperature was fitted on" in text
        assert re.search(r"model/\s+was trained on 120 images, for \d epochs?, the median of the folds' best,", text)
        assert "stopped early" not in text
        assert "could not be shown" not in text
        assert '<div class="tile">' in page.read_text()
        report_again(reported_folds)
    assert set(read_finished(reported_folds).evaluations) == {"out_of_fold", "test"}


def test_cross_validations_are_listed_and_compared_on_their_answers(
    reported_folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reported_folds, tmp_path / "first")
    shutil.copytree(reported_folds, tmp_path / "second")
    main(["runs", str(tmp_path), "--format", "csv"])
    assert capsys.readouterr().out.startswith("run,test/accuracy,out_of_fold/accuracy,epochs/run,")
    main(["report", str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(tmp_path / "comparison")])
    page = (tmp_path / "comparison" / "index.html").read_text()
    assert "2 runs, on the same 120 out-of-fold images" in page
    assert "val loss" not in page


# --- the same command again ----------------------------------------------------------------------------------


def test_the_same_command_finishes_what_was_killed_and_repeats_nothing(digit_folds: Path, tmp_path: Path) -> None:
    words = (*DIGITS, f"hydra.run.dir={tmp_path}")
    killed = command(*words, environment=killed_at("an epoch begins", 14))  # the second epoch of fold 3
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = {fold: dict(written(tmp_path / "folds" / fold)) for fold in "12"}
    assert all("metrics.json" in files for files in finished.values())
    assert (tmp_path / "folds" / "3" / "checkpoints" / "last.ckpt").exists()
    killed = command(*words, environment=killed_at("before the figures", 2))  # those of the final model
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    assert "the final model is trained on 30 images for 3 epochs, the median of the folds' best" in ended.stdout
    assert {fold: dict(written(tmp_path / "folds" / fold)) for fold in "12"} == finished
    assert findings(read_metrics(tmp_path)) == findings(read_metrics(digit_folds))
    assert all((value == weights(digit_folds)[name]).all() for name, value in weights(tmp_path).items())
    answers, expected = (read_evaluation(folder / "evaluation" / "out_of_fold") for folder in (tmp_path, digit_folds))
    assert answers.logits.equal(expected.logits)

    before = dict(written(tmp_path))
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert dict(written(tmp_path)) == before
    for result in (ended, again):
        assert re.search(rf"mean ± std .*{read_metrics(tmp_path)['folds/mean/accuracy']:.4f} ± ", result.stdout)


def test_a_fold_whose_answers_cannot_be_read_stops_by_name(digit_folds: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digit_folds, tmp_path / "run")
    (folder / "metrics.json").unlink()
    (folder / "folds" / "2" / "evaluation" / "test" / "outputs.safetensors").unlink()
    with pytest.raises(DataError, match=rf"{folder}/folds/2/evaluation/test: no evaluation that can be read"):
        run(composed(*DIGITS), folder)


def test_folds_of_other_images_are_refused(tmp_path: Path, folders: Path) -> None:
    root = shutil.copytree(folders, tmp_path / "images")
    config = composed(
        *SMALL, "data=imagefolder", f"data.root={root}", "epochs=1", "folds=2", "data.image_size=32", "data.resize=32"
    )
    run(config, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    next(path for path in root.rglob("*") if path.is_file()).unlink()
    with pytest.raises(DataError, match="was trained on other images than there are now. Restore them, or choose"):
        run(config, tmp_path / "run")


def test_a_folder_of_other_settings_is_refused_by_name(digit_folds: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds a job with other settings \(lr=0.03, here 0.1\). Choose another hydra.run"
    ):
        run(composed(*DIGITS, "lr=0.1"), digit_folds)


def test_a_folder_of_an_ordinary_run_is_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds files that do not belong to a job .* Choose another hydra.run.dir"):
        run(composed(*DIGITS), trained)


def test_the_run_folder_is_named_by_the_command_of_a_cross_validation_alone() -> None:
    def name(*overrides: str) -> str:
        return run_name("now", _root_=composed_with_hydra(*overrides))

    first = name("folds=5", "lr=0.1")
    assert re.fullmatch(r"folds/digits-glyphnet-[0-9a-f]{8}", first)
    assert name("lr=0.1", "report=false", "folds=5") == first
    assert name("folds=5", "lr=0.2") != first
    assert name("folds=5", "data.fold=1") == name("lr=0.1") == "now"


# --- sweeps --------------------------------------------------------------------------------------------------


def test_a_sweep_compares_settings_by_their_mean_over_folds_and_is_resumed(tmp_path: Path) -> None:
    words = ("lr=1e-3,3e-2", *DIGITS[:-2], "folds=2")
    killed = swept(tmp_path, *words, environment=killed_at("after the figures", 5))  # fold 2 of the second job
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = dict(written(tmp_path / "lr=0.001"))
    result = swept(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    assert dict(written(tmp_path / "lr=0.001")) == first
    table = {row["lr"]: float(row["folds/mean/accuracy"]) for row in rows(tmp_path)}
    for lr, value in table.items():
        assert value == pytest.approx(read_metrics(tmp_path / f"lr={lr}")["folds/mean/accuracy"], abs=1e-6)
    best = max(table, key=lambda lr: table[lr])
    assert f"best run: {tmp_path}/lr={best}, folds/mean/accuracy" in result.stdout


# --- fitted heads --------------------------------------------------------------------------------------------------

FITTED = ("optimizer=lbfgs", "folds=4", "data.train_per_class=null", "model.weights=default", *SMALL[1:])


def fitted_words(weight_decay: str) -> tuple[str, ...]:
    return (*FITTED, f"optimizer.weight_decay={weight_decay}", "monitor=val/loss")


@pytest.fixture(scope="session")
def fitted_folds(made_once: Once) -> Path:
    """A cross-validation of fitted heads whose weight decay is given."""
    return made_once("fitted_folds/run", lambda folder: run(composed(*fitted_words("0.3")), folder))


@pytest.mark.parametrize("weight_decay", ["auto", "0.3"])
def test_fitted_heads_of_all_folds_are_fitted_together(tmp_path: Path, fitted_folds: Path, weight_decay: str) -> None:
    words = fitted_words(weight_decay)
    if weight_decay == "auto":
        run(composed(*words), tmp_path)
    else:
        shutil.copytree(fitted_folds, tmp_path, dirs_exist_ok=True)
    answers, metrics = read_evaluation(tmp_path / "evaluation" / "out_of_fold"), read_metrics(tmp_path)
    folds = np.array([row["fold"] for row in read_rows(tmp_path / "evaluation" / "out_of_fold" / "predictions.csv")])
    assert (len(folds), sorted(set(folds))) == (1797, ["1", "2", "3", "4"])
    assert not (tmp_path / "folds").exists(), "no run for each fold"
    correct = answers.predicted == answers.labels
    assert metrics["out_of_fold/accuracy"] == pytest.approx(correct.mean(), abs=1e-6)
    assert 0.9 < correct.mean() < 1
    assert metrics["folds/2/accuracy"] == pytest.approx(correct[folds == "2"].mean(), abs=1e-6)
    assert metrics["out_of_fold/loss"] == pytest.approx(float(answers.losses.mean()), abs=1e-6)
    before = list(written(tmp_path))
    assert run(composed(*words), tmp_path) == metrics["folds/mean/loss"]
    assert list(written(tmp_path)) == before


def test_the_final_fitted_head_is_that_of_a_run_on_all_images(fitted_folds: Path, tmp_path: Path, train: Train) -> None:
    words = (*FITTED, "optimizer.weight_decay=0.3")
    train(*words, "folds=null", "data.val_fraction=0", "data.test_fraction=0", folder=tmp_path / "run")
    assert {split: len(names) for split, names in splits_of(fitted_folds).items()} == {"train": 1797}
    expected = weights(tmp_path / "run")
    assert all(value.equal(expected[name]) for name, value in weights(fitted_folds).items())
    answers = read_evaluation(fitted_folds / "evaluation" / "out_of_fold")
    temperature = headstart.load(fitted_folds).temperature
    assert temperature == fit_temperature(answers.logits, answers.labels) != 1
    assert headstart.load(tmp_path / "run").temperature == 1


def test_fitted_heads_of_few_images_have_no_validation_images(tmp_path: Path) -> None:
    run(composed(*FITTED, "optimizer.weight_decay=0.3", "folds=2", "data.train_per_class=4"), tmp_path)
    splits = {split: len(names) for split, names in splits_of(tmp_path / "folds" / "1").items()}
    assert splits == {"train": 40, "test": 899}
    assert {split: len(names) for split, names in splits_of(tmp_path).items()} == {"train": 40}
