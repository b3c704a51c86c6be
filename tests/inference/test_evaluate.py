"""`headstart evaluate`: the metrics of training again, and those on other folders."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import headstart
from headstart.cli.main import main
from headstart.inference.evaluate import evaluate
from headstart.runs.predictions import Evaluation, read_evaluation
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.images import class_folders, make_stl10
from tests.helpers.runs import SMALL, TINY_RESNET, Train, composed, read_metrics, read_rows


def metrics_of(metrics: dict[str, Any], split: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(f"{split}/")}


STRATEGIES = {
    "features": ("head=mlp",),
    "onnx features": ("features.engine=onnx", "data.evaluation_batch_size=5"),
    "through the network": ("features=off", "augment=flip", "data.batch_size=7"),
    "all of it": ("freeze=false", "loss.label_smoothing=0.1", "loss.class_weights=balanced"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_a_run_is_evaluated_to_its_own_metrics(strategy: str, split: str, folders: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "strategies" / strategy
    if not folder.exists():
        from headstart.train import run

        overrides = ("data=imagefolder", f"data.root={folders}", "data.test_fraction=0.3", "epochs=2")
        run(composed(*SMALL, *TINY_RESNET, *overrides, *STRATEGIES[strategy]), folder)
    expected = read_metrics(folder)
    evaluation = evaluate(folder, split=split)
    assert metrics_of(evaluation.metrics, split) == metrics_of(expected, split)
    assert len(metrics_of(expected, split)) == 5  # loss, accuracies, two classes
    assert evaluation.metrics[f"data/{split}_size"] == expected[f"data/{split}_size"]
    assert evaluation.notes == []


def test_an_empty_cache_changes_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    expected = read_metrics(trained)
    assert metrics_of(evaluate(trained).metrics, "test") == metrics_of(expected, "test")


def test_more_than_five_classes_and_images_in_memory(train: Train, tmp_path: Path) -> None:
    expected = train("epochs=2", "data.num_workers=0")
    evaluation = evaluate(tmp_path / "run")
    assert metrics_of(evaluation.metrics, "test") == metrics_of(expected, "test")
    assert "test/top5_accuracy" in evaluation.metrics
    evaluation.save(tmp_path / "evaluation")
    predictions = read_rows(tmp_path / "evaluation" / "predictions.csv")
    assert list(predictions[0])[-2:] == ["class_5", "probability_5"]


def test_what_is_written_is_what_was_measured(trained: Path, folders: Path, tmp_path: Path, capsys: Any) -> None:
    main(["evaluate", str(trained), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert f"evaluation: {tmp_path / 'out'}" in out
    metrics = read_metrics(tmp_path / "out")
    predictions, classes = read_rows(tmp_path / "out" / "predictions.csv"), read_rows(tmp_path / "out" / "classes.csv")
    assert len(predictions) == metrics["data/test_size"] == 6
    right = [row["true"] == row["predicted"] for row in predictions]
    assert sum(right) / len(right) == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    losses = [float(row["loss"]) for row in predictions]
    assert sum(losses) / len(losses) == pytest.approx(metrics["test/loss"], abs=1e-5)
    for row in predictions:
        assert Path(row["image"]).is_relative_to(folders)
        assert Path(row["image"]).parent.name == row["true"]
        probability = float(row["probability"] if row["true"] == row["predicted"] else row["probability_2"])
        assert -math.log(probability) == pytest.approx(float(row["loss"]), abs=1e-4)
    by_class = {row["class"]: row for row in classes}
    for name in ("cat", "dog"):
        assert float(by_class[name]["recall"]) == pytest.approx(metrics[f"test/class_accuracy/{name}"], abs=1e-6)
        assert int(by_class[name]["images"]) == sum(row["true"] == name for row in predictions)
        assert int(by_class[name]["predicted"]) == sum(row["predicted"] == name for row in predictions)


def test_without_a_place_to_write_it_goes_into_the_run_folder(trained: Path, folders: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    main(["evaluate", str(run)])
    main(["evaluate", str(run / "model"), str(folders)])
    main(["evaluate", str(run / "checkpoints" / "last.ckpt"), "--split", "test", str(folders)])
    names = sorted(path.parent.name for path in (run / "evaluation").rglob("metrics.json"))
    assert len(names) == 4  # none over another, but the run's own test split
    assert names[2:] == ["test", "val"]
    assert all(name.startswith(f"{folders.name}-") for name in names[:2])
    assert names[0].endswith(("-test", "-test-last"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_run_leaves_what_evaluate_would_write(split: str, trained: Path, tmp_path: Path) -> None:
    main(["evaluate", str(trained), "--split", split, "--out", str(tmp_path)])
    for name in ("predictions.csv", "classes.csv", "metrics.json"):
        assert (trained / "evaluation" / split / name).read_bytes() == (tmp_path / name).read_bytes()
    saved, made = read_evaluation(trained / "evaluation" / split), read_evaluation(tmp_path)
    assert torch.equal(saved.logits, made.logits)
    assert torch.equal(saved.outputs.features, made.outputs.features)
    assert saved.labels.tolist() == made.labels.tolist()
    assert (saved.class_names, saved.images, saved.split) == (("cat", "dog"), made.images, split)


def test_an_evaluation_that_is_damaged_is_named(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "evaluation" / "test", tmp_path / "test"))
    rows = (folder / "predictions.csv").read_text().splitlines()
    (folder / "predictions.csv").write_text("\n".join(rows[:-1]))
    with pytest.raises(
        DataError, match="test: its files are not of the same images. Make them again by headstart eval"
    ):
        read_evaluation(folder)
    (folder / "outputs.safetensors").write_bytes(b"12345678")
    with pytest.raises(DataError, match="test: no evaluation that can be read .* Make it by headstart evaluate"):
        read_evaluation(folder)


def predicted_classes(evaluation: Evaluation) -> dict[str, str]:
    """Class names predicted, by file name."""
    names = [str(Path(image).relative_to(Path(image).parents[1])) for image in evaluation.images]
    return {name: evaluation.class_names[index] for name, index in zip(names, evaluation.predicted, strict=True)}


def test_classes_are_matched_by_name_and_not_by_their_order(trained: Path, folders: Path, tmp_path: Path) -> None:
    """A new folder in front of the others, and one in between, move every label."""
    before = evaluate(trained, folders)
    assert before.metrics["test/accuracy"] > 0.9
    renamed = Path(shutil.copytree(folders, tmp_path / "renamed"))
    class_folders(tmp_path / "renamed", ("aardvark", "crow"), 3)
    after = evaluate(trained, renamed)
    assert after.metrics == before.metrics
    assert predicted_classes(after) == predicted_classes(before)
    assert after.notes == ["the model does not know aardvark, crow: 6 images of these classes are left out"]
    # The same files below other names: the predicted names do not change.
    (renamed / "cat").rename(renamed / "zebra")
    moved = headstart.load(trained, "cpu")
    for path in sorted((renamed / "zebra").iterdir()):
        assert moved.predict(path).class_name == predicted_classes(before)[f"cat/{path.name}"]


def test_classes_that_the_data_lack_are_named(trained: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "dog", tmp_path / "data" / "dog")
    evaluation = headstart.load(trained / "model", "cpu").evaluate(tmp_path / "data")
    assert evaluation.notes == ["the data have no image of cat, which the model knows"]
    assert "test/class_accuracy/cat" not in evaluation.metrics
    assert evaluation.metrics["data/test_size"] == 10
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "wolf")
    with pytest.raises(
        DataError, match="the model knows none of the classes wolf; it knows cat, dog. Classes are matche"
    ):
        evaluate(trained, tmp_path / "data")


@pytest.mark.parametrize("tta", ["flip", "five"])
def test_several_views_count_as_they_do_in_predict(
    tta: Literal["flip", "five"], reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(reported), "--tta", tta, "--out", str(tmp_path / "out")])
    capsys.readouterr()
    evaluation = evaluate(reported, tta=tta)
    assert evaluation.name == f"test-{tta}"
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    model = headstart.load(reported)
    assert model.temperature != 1.0  # so that it matters where it is applied
    for row, prediction in zip(rows, model.predict([row["image"] for row in rows], tta=tta), strict=True):
        assert row["predicted"] == prediction.class_name
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-4)
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert evaluation.metrics["test/accuracy"] == pytest.approx(right / len(rows), abs=1e-6)
    assert evaluation.metrics["test/loss"] != evaluate(reported).metrics["test/loss"]


def test_other_data_by_overrides_are_not_split(train: Train, tmp_path: Path) -> None:
    make_stl10(tmp_path / "stl10")
    overrides = ("data=stl10", f"data.root={tmp_path / 'stl10'}", *TINY_RESNET, "epochs=1")
    expected = train(*overrides)
    evaluation = evaluate(tmp_path / "run", *overrides[:2])
    assert metrics_of(evaluation.metrics, "test") == metrics_of(expected, "test")
    assert evaluate(tmp_path / "run", *overrides[:2], split="train").metrics["data/train_size"] == 200
    assert expected["data/train_size"] < 200
    moved = Path(shutil.move(tmp_path / "stl10", tmp_path / "moved"))
    evaluation = evaluate(tmp_path / "run", f"data.root={moved}", split="val")
    assert metrics_of(evaluation.metrics, "val") == metrics_of(expected, "val")


def test_the_first_split_that_there_is_is_named(train: Train, folders: Path, tmp_path: Path) -> None:
    train("data=imagefolder", f"data.root={folders}", *TINY_RESNET, "epochs=1", "data.test_fraction=0")
    evaluation = evaluate(tmp_path / "run")
    assert (evaluation.split, evaluation.name) == ("val", "val")
    assert evaluation.notes == ["there is no test split: these metrics are of val"]
    with pytest.raises(DataError, match="these data have no test split; there are train, val."):
        evaluate(tmp_path / "run", split="test")


def test_a_model_alone_needs_data(trained: Path, folders: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    with pytest.raises(ConfigError, match="model lies in no run folder, so its own data are not known. Name a folder"):
        evaluate(model)
    evaluation = evaluate(model, "data=imagefolder", f"data.root={folders}", "trainer.enable_progress_bar=false")
    expected = evaluate(trained, folders).metrics
    assert evaluation.metrics == {name.replace("test", "train"): value for name, value in expected.items()}
    with pytest.raises(ConfigError, match="unknown key 'rot' in 'data'. Did you mean 'root'?"):
        evaluate(trained, "data.rot=x")
    with pytest.raises(ConfigError, match="a b: name one folder of images, with a folder for each class in it."):
        main(["evaluate", str(trained), "a", "b"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("{folders}", "data=digits"), "and data=digits: name one of them, they are different data."),
        (("+freze=true",), "unknown key 'freze'. Did you mean 'freeze'"),
        (("experiment=emergency_vgg16",), "unknown key 'experiment'. The keys are freeze, epochs"),
        (("data.root=[",), "data.root=\\[: while parsing"),
        (("trainer=gpuu",), "Could not find 'trainer/gpuu'"),
        (
            ("data.split_seed=1",),
            "these are not the images, labels and splits that .* was trained with, which split.csv",
        ),
    ],
)
def test_words_that_do_not_fit_are_explained(
    overrides: tuple[str, ...], message: str, trained: Path, folders: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate(trained, *(override.format(folders=folders) for override in overrides))


def test_training_images_are_never_reported_as_a_test(train: Train, folders: Path, tmp_path: Path) -> None:
    """An image more or less, and all splits would be others."""
    data = Path(shutil.copytree(folders, tmp_path / "data"))
    train("data=imagefolder", f"data.root={data}", *TINY_RESNET, "epochs=1")
    (data / "cat" / "3.jpg").unlink()
    with pytest.raises(DataError, match="images that it was trained on could count as a test. Restore them, or name"):
        evaluate(tmp_path / "run")


def test_a_run_is_found_from_within_it(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained / "checkpoints")
    assert evaluate("best.ckpt").run_folder == trained
    monkeypatch.chdir(trained / "model")
    assert evaluate(".").run_folder == trained
