"""Reports of real runs, read back from the page, from the tables beside it and from TensorBoard's events."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import headstart
from headstart.cli.main import main
from headstart.report.charts import curve
from headstart.report.comparison import compare_runs
from headstart.report.statistics import wilson
from headstart.runs.finished import read_curves, read_finished
from headstart.utils.errors import ConfigError, DataError
from headstart.utils.files import write_json
from tests.helpers.images import CLASSES
from tests.helpers.runs import SMALL, composed, read_metrics, read_rows, report_words


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_of(folder: Path) -> str:
    """The text of a run's report, or of a comparison."""
    path = folder / "report" / "index.html"
    return (path if path.exists() else folder / "index.html").read_text()


def train(root: Path, folder: Path, *overrides: str) -> None:
    from headstart.train import run

    run(composed(*report_words(root, *overrides)), folder)


@pytest.fixture(scope="module")
def uninterrupted(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(hard, folder, "report=false", "epochs=5")
    return folder


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(reported: Path) -> None:
    page = page_of(reported)
    assert len(page) < 5_000_000
    # All that it loads is in it, and XML's names of namespaces are no addresses.
    loaded = re.findall(r"""(?:src|href)="([^"]*)""", page)
    assert len(loaded) > 50
    assert all(url.startswith(("data:", "#")) for url in loaded)
    assert "url(http" not in page
    assert "<script" not in page
    assert re.search(r"Training spent \d+ % of its time waiting for batches", page)


def test_the_page_says_how_good_and_how_certain(reported: Path) -> None:
    page = page_of(reported)
    accuracy = read_metrics(reported)["test/accuracy"]
    low, high = wilson(round(accuracy * 45), 45)
    assert 0.4 < accuracy < 1
    assert f"{accuracy:.1%}" in page
    assert "{params/trainable:,} of {params/total:,} parameters".format_map(read_metrics(reported)) in page
    assert f"95 % confidence interval {low:.1%} to {high:.1%}" in page
    assert f"--config-path={reported} --config-name=config" in page
    for title in ("Hardest classes", "Worst mistakes", "Calibration", "Augmentation (flip)"):
        assert title in page


def test_the_last_epoch_stands_beside_the_best_one(reported: Path, tmp_path: Path) -> None:
    metrics, page = read_metrics(reported), page_of(reported)
    assert "The last epoch was not chosen, so its metrics stand beside them." in page
    assert page.count('<th class="number">last epoch</th>') == 1
    assert f'<td class="number">{metrics["last_epoch/val/loss"]:.3f}</td></tr>' in page
    # Runs of earlier versions have no such metrics.
    copy = Path(shutil.copytree(reported, tmp_path / "copy"))
    write_json(copy / "metrics.json", {name: metrics[name] for name in metrics if not name.startswith("last_epoch/")})
    main(["report", str(copy)])
    assert not re.search("last epoch", page_of(copy), re.IGNORECASE)


def test_names_from_the_data_are_text(reported: Path) -> None:
    """A class or a file must not be able to run something in the reader's browser."""
    page = page_of(reported)
    assert "<b>very" not in page
    assert "a &lt;b&gt;very long $name$" in page


def test_the_worst_are_the_mistakes_with_the_largest_loss(reported: Path) -> None:
    worst = read_rows(reported / "report" / "worst.csv")
    predictions = read_rows(reported / "evaluation" / "test" / "predictions.csv")
    wrong = [row for row in predictions if row["true"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["loss"]))
    assert 0 < len(wrong) <= 50
    assert [row["image"] for row in worst] == [row["image"] for row in wrong]
    assert all(Path(row["image"]).is_file() and Path(row["image"]).parent.name == row["true"] for row in worst)
    page = page_of(reported)
    assert f"{Path(worst[0]['image']).name}</span>" in page
    assert page.count('class="wrong"') >= len(worst)


def test_made_again_it_is_the_same(reported: Path, tmp_path: Path, capsys: Any) -> None:
    copy = Path(shutil.copytree(reported, tmp_path / "copy"))
    (copy / "report" / "index.html").unlink()
    main(["report", str(copy)])
    assert f"report: {copy / 'report' / 'index.html'}" in capsys.readouterr().out
    first, again = ((run / "report" / "index.html").read_text() for run in (reported, copy))
    assert again.replace(str(copy), str(reported)).replace(">copy<", ">run<").replace("copy ·", "run ·") == first
    # TensorBoard's pictures are replaced, not doubled.
    assert len(list((copy / "tensorboard").glob("*.report"))) == 1


def test_images_that_were_moved(reported: Path, hard: Path, tmp_path: Path, caplog: Any) -> None:
    copy = Path(shutil.copytree(reported, tmp_path / "copy"))
    moved = Path(shutil.copytree(hard, tmp_path / "moved"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(hard), str(tmp_path / "gone")))
    with pytest.raises(DataError, match="images of this run are not available: .* Set data.root=FOLDER if they were"):
        main(["report", str(copy)])
    assert "Training images as the network sees them" in page_of(copy)  # the former one is still there
    shutil.rmtree(copy / "report")
    main(["report", str(copy)])
    assert "the images of this run are not available: " in caplog.text
    page = page_of(copy)
    assert "Training images as the network sees them" not in page
    assert "Calibration" in page
    main(["report", str(copy), f"data.root={moved}"])
    assert "Training images as the network sees them" in page_of(copy)
    (moved / "val" / "ant" / "0.png").unlink()
    with pytest.raises(
        DataError, match="these are not the images, labels and splits that .* was trained with, which split.csv"
    ):
        main(["report", str(copy), f"data.root={moved}"])


def test_what_cannot_be_drawn_is_a_warning(hard: Path, tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    """The run is there, with all that can be drawn; the reason stands in the log and on the page."""
    from headstart.report import charts

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(charts, "reliability", broken)
    train(hard, tmp_path / "run", "epochs=1")
    assert read_metrics(tmp_path / "run")["epochs/run"] == 1
    assert "reliability cannot be shown: ValueError: no ink" in caplog.text
    page = page_of(tmp_path / "run")
    assert "reliability: ValueError: no ink" in page
    assert "Confusion matrix" in page
    monkeypatch.setattr("headstart.report.html.render", broken)
    train(hard, tmp_path / "second", "epochs=1")
    assert f"there is no report: ValueError: no ink. Try headstart report {tmp_path / 'second'}" in caplog.text
    assert read_metrics(tmp_path / "second")["epochs/run"] == 1


def test_what_is_no_finished_run_is_said(reported: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(DataError, match="no such folder"):
        main(["report", str(tmp_path / "none")])
    copy = Path(shutil.copytree(reported, tmp_path / "copy"))
    shutil.rmtree(copy / "evaluation")
    with pytest.raises(
        DataError, match="has no evaluation of val or test. Make one by headstart evaluate .* --split val"
    ):
        main(["report", str(copy)])
    (copy / "metrics.json").write_text("{damaged")
    with pytest.raises(DataError, match="copy: its metrics.json is damaged. Copy the run folder again, or resume it"):
        main(["report", str(copy)])
    assert main(["runs", str(tmp_path)]) is None
    assert "damaged metrics.json" in capsys.readouterr().out
    (copy / "metrics.json").unlink()
    with pytest.raises(DataError, match="copy: this run has not ended, it has no metrics.json"):
        main(["report", str(copy)])


def test_from_another_folder_the_images_are_found_again(
    hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hard.parent)
    train(Path(hard.name), tmp_path / "run", "epochs=1")
    monkeypatch.chdir(tmp_path)
    main(["report", "run"])
    assert "Training images as the network sees them" in page_of(tmp_path / "run")


def test_answers_that_cannot_be_written_do_not_cost_the_run(hard: Path, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation").write_text("in the way")
    train(hard, tmp_path / "run", "epochs=1")
    assert "the predictions for each image cannot be saved in " in caplog.text
    assert read_metrics(tmp_path / "run")["epochs/run"] == 1
    assert headstart.load(tmp_path / "run", "cpu").class_names == tuple(sorted(CLASSES))


@pytest.mark.filterwarnings("ignore:Encountered `nan` values:UserWarning")
def test_a_run_that_diverged_has_its_report(hard: Path, reported: Path, tmp_path: Path, caplog: Any) -> None:
    from headstart.train import run

    words = report_words(hard, "epochs=2", "freeze=false", "monitor=val/loss", "optimizer=sgd")
    run(composed(*(word for word in words if not word.startswith("lr=")), "lr=1e30"), tmp_path / "run")
    assert "the run diverged" in caplog.text
    assert "there is no report" not in caplog.text
    assert "Confusion" not in caplog.text
    assert (tmp_path / "run" / "report" / "figures" / "confusion.png").exists()
    main(["report", str(reported), str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert "val loss not finite" in page_of(tmp_path / "out")


@pytest.mark.parametrize("folder", ["first", "second"])
def test_a_resumed_run_has_the_best_epoch_and_class_curves_of_an_uninterrupted_one(
    folder: str, uninterrupted: Path, hard: Path, tmp_path: Path
) -> None:
    train(hard, tmp_path / "first", "report=false", "epochs=3")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    train(hard, tmp_path / folder, "report=false", "epochs=5", f"ckpt_path={last}")
    resumed, whole = read_finished(tmp_path / folder), read_finished(uninterrupted)
    assert resumed.best_epoch == whole.best_epoch == read_metrics(uninterrupted)["epochs/best"]
    assert resumed.class_curves.tolist() == whole.class_curves.tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_class_whose_name_is_no_utf_8(hard: Path, tmp_path: Path, caplog: Any) -> None:
    root = Path(shutil.copytree(hard, tmp_path / "data"))
    for split in ("train", "val", "test"):
        (root / split / "zebra").rename(root / split / os.fsdecode(b"caf\xe9"))
    train(root, tmp_path / "run", "epochs=1")
    assert "there is no report" not in caplog.text
    assert "cannot be shown" not in caplog.text
    assert (tmp_path / "run" / "report" / "index.html").exists()


# --- calibration ---------------------------------------------------------------------------------------------


def test_the_temperature_travels_with_the_model(reported: Path, hard: Path) -> None:
    model = headstart.load(reported, "cpu")
    temperature = model.description["temperature"]
    assert temperature == model.temperature != 1
    path = next((hard / "test" / "ant").iterdir())
    prediction = model.predict(path)
    logits = next(iter(model.logits_each([path])))
    assert prediction.probability == pytest.approx(float((logits / temperature).softmax(dim=1).max()), abs=1e-6)
    saved = {Path(row["image"]): row for row in read_rows(reported / "evaluation" / "test" / "predictions.csv")}
    assert float(saved[path]["probability"]) == pytest.approx(prediction.probability, abs=1e-5)
    assert saved[path]["predicted"] == prediction.class_name
    assert headstart.load(reported / "checkpoints" / "best.ckpt", "cpu").temperature == 1


# --- TensorBoard ---------------------------------------------------------------------------------------------


def test_tensorboard_has_every_picture(reported: Path) -> None:
    events = EventAccumulator(str(reported / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert [tag.partition("_")[2] for tag in sorted(tags["images"])] == [
        *("seen", "augmented", "confusion", "reliability", "class_accuracy", "accuracy_by_size", "examples", "worst")
    ]
    for tag in tags["images"]:
        image = events.Images(tag)[-1]
        assert image.width > 300, tag
    assert {"config/text_summary", "classes/text_summary"} <= set(tags["tensors"])
    assert sum(tag.startswith("test/") for tag in tags["tensors"]) == len(CLASSES)  # precision and recall
    text = events.Tensors("classes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| ant | 12 | 15 |" in text


def test_the_projector_has_features_classes_and_thumbnails(reported: Path) -> None:
    folder = reported / "tensorboard"
    config = (folder / "projector_config.pbtxt").read_text()
    tensors, metadata, sprite = (
        re.findall(rf'{what}_path: "([^"]*)"', config)[0] for what in ("tensor", "metadata", "image")
    )
    assert len((folder / tensors).read_text().splitlines()) == 45
    lines = (folder / metadata).read_text().splitlines()
    assert lines[0] == "class\tpredicted\timage"
    assert len(lines) == 46
    assert all(line.split("\t")[0] in CLASSES for line in lines[1:])
    assert min(Image.open(folder / sprite).size) >= 7 * 48


def test_the_scalars(reported: Path) -> None:
    events = EventAccumulator(str(reported / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for split in ("train", "val"):
        assert len(events.Scalars(f"{split}/loss")) == 4
    assert len(events.Scalars("test/loss")) == 1
    assert len(events.Scalars("lr-Adam")) == 4
    waiting, speed = events.Scalars("time/waiting"), events.Scalars("time/images_per_s")
    assert all(0 < event.value < 1 for event in waiting)
    seconds = events.Scalars("time/epoch_s")
    assert all(event.value > 60 / images.value for event, images in zip(seconds, speed, strict=True))
    # Train, val and test are on one chart.
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: chart.multiline.tag[0] for category in layout.category for chart in category.chart}
    assert all(re.match(charts["loss"], f"{split}/loss") for split in ("train", "val", "test"))
    assert not re.match(charts["accuracy"], "best/val/accuracy")


def test_curves_are_of_epochs_whatever_logged_them(reported: Path, other: Path) -> None:
    for folder, epochs in ((reported, 4), (other, 2)):
        curves = read_curves(folder)
        for name in ("train/loss", "val/accuracy", "lr-Adam"):
            assert [epoch for epoch, _ in curves[name]] == list(range(1, epochs + 1)), (folder, name)
        best = max(value for _, value in curves["val/accuracy"])
        assert best == pytest.approx(read_metrics(folder)["val/accuracy"], abs=1e-6)
        run = read_finished(folder)
        assert run.best_epoch is not None
        assert dict(curves["val/accuracy"])[run.best_epoch] == best
        assert run.class_curves.shape == (epochs, 3)


# --- comparisons ---------------------------------------------------------------------------------------------


def test_runs_are_compared_on_the_same_images(reported: Path, other: Path, tmp_path: Path, capsys: Any) -> None:
    split, compared = compare_runs([read_finished(reported), read_finished(other)])
    assert split == "test"
    assert compared[0].accuracy >= compared[1].accuracy
    for one in compared:
        assert one.accuracy == pytest.approx(read_metrics(one.run.folder)["test/accuracy"], abs=1e-6)
    test = compared[1].against_best
    assert test is not None
    assert compared[0].against_best is None
    assert (test.only_first - test.only_second) / 45 == pytest.approx(compared[0].accuracy - compared[1].accuracy)
    planted = shutil.copytree(other, tmp_path / "<b>other")
    main(["report", str(reported), str(planted), "--out", str(tmp_path / "out")])
    assert f"comparison: {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().out
    page = page_of(tmp_path / "out")
    assert f"p = {test.p_value:.2g}" in page
    assert "head.name=mlp" in page
    assert "2 runs, on the same 45 test images" in page
    assert "<b>other" not in page
    assert "&lt;b&gt;other" in page


def test_a_folder_of_runs_is_all_of_them(reported: Path, other: Path, pages: Path, capsys: Any) -> None:
    for run in (reported, other):
        shutil.copytree(run, pages / "sweep" / run.parent.name)
    (pages / "sweep" / "broken").mkdir()
    (pages / "sweep" / "broken" / "config.yaml").write_text((reported / "config.yaml").read_text())  # not ended
    main(["report", "sweep"])
    page = capsys.readouterr().out.partition("comparison: ")[2].strip()
    assert "2 runs" in (pages / page).read_text()
    assert page.startswith("outputs/comparisons/")


def test_what_cannot_be_compared_is_said(reported: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image of their test split in common, by name and class: compare runs on"):
        main(["report", str(reported), str(finished)])  # of digits
    with pytest.raises(ConfigError, match="data.root=x: expected run folders, or one run folder and its overrides"):
        main(["report", str(reported), str(finished), "data.root=x"])
    (tmp_path / "empty" / "run").mkdir(parents=True)
    shutil.copy(reported / "config.yaml", tmp_path / "empty" / "run")
    with pytest.raises(DataError, match="empty: no finished run below it"):
        main(["report", str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="--out is for comparisons"):
        main(["report", str(reported), "--out", str(tmp_path / "out")])


# --- when it is made -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sweep", "made"), [((), False, True), ((), True, False), (("report=true",), True, True)]
)
def test_a_job_of_a_sweep_has_no_report(words: tuple[str, ...], sweep: bool, made: bool, tmp_path: Path) -> None:
    from headstart.train import run

    auto = [word for word in SMALL if not word.startswith("report")]
    run(composed(*auto, "model.weights=default", "epochs=1", *words), tmp_path / "run", sweep=sweep)
    assert (tmp_path / "run" / "report" / "index.html").exists() == made
    assert (tmp_path / "run" / "evaluation" / "test" / "outputs.safetensors").exists()


def test_a_run_that_saw_only_some_batches_has_no_report(hard: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    train(hard, tmp_path / "run", "epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
    assert "there is no report: only some of the images were evaluated" in caplog.text
    assert read_metrics(tmp_path / "run")["epochs/run"] == 1
    assert not (tmp_path / "run" / "report").exists()


def test_of_many_learning_rates_the_first_and_the_last_are_named() -> None:
    blocks = ["head", *(f"block{number}" for number in range(12, 0, -1))]
    rates = {
        f"lr-AdamW/{name}{decay}": [(1.0, 1e-3 * 0.8**depth), (2.0, 5e-4 * 0.8**depth)]
        for depth, name in enumerate(blocks)
        for decay in ("", ", no decay")
    }
    axes = curve(rates, "learning_rate").axes[0]
    assert len(axes.lines) == len(blocks)  # what does not decay has the same rates
    (legend,) = axes.figure.legends  # outside: lines may be anywhere in the chart
    assert axes.get_legend() is None
    assert [text.get_text() for text in legend.get_texts()] == ["AdamW/head", "AdamW/block1"]
