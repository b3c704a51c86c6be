"""Using a trained model from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import headstart
from headstart.data.image_io import read_image
from headstart.data.preprocessing import tta_transform
from headstart.inference.model import Model
from headstart.utils.errors import ConfigError, DataError
from tests.helpers.images import make_bad_files, make_odd_images
from tests.helpers.runs import Train


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def test_one_picture_has_one_answer_whatever_it_comes_as(model: Model, tmp_path: Path) -> None:
    path = make_odd_images(tmp_path)["palette.png"]
    image = read_image(path)
    forms = (str(path), path, Image.open(path), image, np.asarray(image), as_tensor(image), as_tensor(image) / 255)
    assert len({model.predict(form) for form in forms}) == 1  # type: ignore[arg-type]
    assert model.predict(path).class_name in ("cat", "dog")


def test_greys_16_bits_and_transparency_in_memory_are_as_in_files(model: Model, tmp_path: Path) -> None:
    odd = make_odd_images(tmp_path)
    grey, deep = np.asarray(Image.open(odd["grey.png"])), np.asarray(Image.open(odd["deep.png"]))
    transparent = np.asarray(Image.open(odd["transparent.png"]))
    expected = model.predict(odd["grey.png"])
    assert {model.predict(form) for form in (grey, grey[..., None], deep, torch.from_numpy(grey.copy())[None])} == {
        expected
    }
    assert model.predict(transparent) == model.predict(odd["transparent.png"])


def test_several_images_are_answered_in_order(model: Model, folders: Path) -> None:
    files = [folders / name / f"{index}.jpg" for index in range(5) for name in ("dog", "cat")]
    predictions = model.predict(files)
    assert [prediction.class_name for prediction in predictions] == ["dog", "cat"] * 5
    pixels = np.stack([np.asarray(read_image(file)) for file in files])
    assert model.predict(pixels) == predictions
    assert model.predict(iter(files)) == predictions
    assert model.predict([]) == []
    for prediction in predictions:
        assert prediction.top[0] == (prediction.class_name, prediction.probability)
        assert sum(probability for _, probability in prediction.top) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_neither_batches_nor_workers_change_an_answer(
    batch_size: int, num_workers: int, model: Model, folders: Path
) -> None:
    files = sorted(str(file) for file in folders.rglob("*.jpg"))
    expected = torch.cat([logits for logits in model.logits_each(files) if isinstance(logits, Tensor)])
    state = torch.get_rng_state()
    given = model.logits_each(files, batch_size=batch_size, num_workers=num_workers)
    torch.testing.assert_close(torch.cat([x for x in given if isinstance(x, Tensor)]), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mirror_image_counts_as_much_as_the_image(model: Model, folders: Path) -> None:
    image = read_image(folders / "cat" / "0.jpg").crop((0, 0, 36, 36))  # square: its middle is that of its mirror image
    predictions = [model.predict(form, tta="flip") for form in (image, ImageOps.mirror(image))]
    assert predictions[0].probability == pytest.approx(predictions[1].probability, abs=1e-6)
    alone = [dict(model.predict(form).top)["cat"] for form in (image, ImageOps.mirror(image))]
    assert dict(predictions[0].top)["cat"] == pytest.approx(np.mean(alone), abs=1e-6)


def test_five_crops_are_the_corners_and_the_middle(model: Model, folders: Path) -> None:
    image = read_image(folders / "dog" / "1.jpg")  # of 40 by 36 pixels, resized to 35 by 32
    views = tta_transform(model.preprocessing, "five")(image)
    assert views.shape == (5, 3, 32, 32)
    assert torch.equal(views[4], model.transform(image))
    resized = image.resize((35, 32), Image.Resampling.BILINEAR)
    corner = model.transform(resized.crop((0, 0, 32, 32)))
    assert torch.equal(views[0], corner)
    probabilities = model.logits(views).softmax(dim=1).mean(dim=0)
    assert model.predict(image, tta="five").probability == pytest.approx(float(probabilities.max()), abs=1e-6)
    with pytest.raises(ConfigError, match="tta=ten: expected flip or five."):
        model.predict(image, tta="ten")  # type: ignore[arg-type]


def test_what_cannot_be_read_says_why_and_the_rest_is_answered(model: Model, tmp_path: Path) -> None:
    good = make_odd_images(tmp_path / "good")
    bad = make_bad_files(tmp_path / "bad")
    files = [
        path for pair in zip(good.values(), [tmp_path / "bad" / name for name in bad], strict=False) for path in pair
    ]
    for path, prediction in zip(files, model.predict_each(files), strict=True):
        if path.parent.name == "good":
            assert not isinstance(prediction, DataError)
        else:
            assert isinstance(prediction, DataError)
            assert str(prediction).startswith(f"{path}: {bad[path.name]}")
    with pytest.raises(DataError, match="empty.jpg: not an image"):
        model.predict(tmp_path / "bad" / "empty.jpg")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            np.zeros((3, 8, 8), np.uint8),
            r"an array of shape \(3, 8, 8\) is not an image: expected \(height, width\) or",
        ),
        (np.zeros((8, 0, 3), np.uint8), r"an array of shape \(8, 0, 3\) is not an image"),
        (np.zeros((8, 8), np.int64), "an array of int64 is not an image: expected uint8, uint16, or floats in"),
        (
            torch.randn(3, 8, 8) * 9,
            "are not pixels: expected values in .* Pass preprocessed images to Model.log",
        ),
        (torch.full((3, 8, 8), torch.nan), "floats from nan to nan are not pixels"),
        (torch.zeros((3, 8, 8), dtype=torch.bfloat16), "Tensor torch.bfloat16 is not an image."),
        (np.zeros((60_000, 1), np.uint8), "1 × 60000 pixels: one side is more than 500 times the other"),
        (Image.new("L", (60_000, 1)), "60000 × 1 pixels: one side is more than 500 times the other"),
        (Image.new("RGB", (0, 0)), "it has no pixels"),
        (b"bytes", "an array of shape .* is not an image"),
    ],
)
def test_what_is_no_picture_in_memory_is_refused(form: Tensor, message: str, model: Model) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(form)


def test_how_many_classes_has_to_be_a_number(model: Model, folders: Path) -> None:
    with pytest.raises(ConfigError, match="top=0: expected the number of classes to return, 1 or more."):
        model.predict(folders / "cat" / "0.jpg", top=0)
    assert len(model.predict(folders / "cat" / "0.jpg", top=1).top) == 1


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there_is_named(device: str, trained: Path) -> None:
    with pytest.raises(ConfigError, match=f"device={device} is not available .* Use cpu."):
        headstart.load(trained, device)


def test_using_a_model_imports_neither_lightning_nor_hydra(trained: Path, folders: Path) -> None:
    code = f"""
import sys, headstart
assert "torch" not in sys.modules
for path in ("model", "checkpoints/best.ckpt"):
    print(headstart.load("{trained}/" + path, "cpu").predict("{folders}/cat/0.jpg").class_name)
heavy = {{"lightning", "hydra", "omegaconf", "torchmetrics", "sklearn", "tensorboard"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["cat", "cat"]


def test_a_network_that_asks_how_old_its_weights_are_loads(train: Train, folders: Path, tmp_path: Path) -> None:
    """MNASNet keeps a version beside its weights, which safetensors does not."""
    train("data=imagefolder", f"data.root={folders}", "model=torchvision", "model.name=mnasnet0_5", "epochs=1")
    assert headstart.load(tmp_path / "run", "cpu").predict(folders / "cat" / "0.jpg").class_name in ("cat", "dog")
