"""`headstart export`: files for other runtimes that give the model's answers, or no file."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headstart.cli.main import main
from headstart.data.image_io import read_image
from headstart.inference.export import METADATA, Exported, export
from headstart.inference.model import Model
from headstart.utils.errors import ConfigError, DataError, ModelError

ort: Any = importlib.import_module("onnxruntime")
onnx: Any = importlib.import_module("onnx")


@pytest.fixture(scope="module")
def files(folders: Path) -> list[Path]:
    return sorted(folders.rglob("*.jpg"))


def from_files(files: list[Path]) -> np.ndarray[Any, Any]:
    """What somebody without headstart does: resize to 32 pixels, cut the middle out."""
    pixels = []
    for path in files:
        image = read_image(path)  # 40 by 36 pixels
        image = image.resize((35, 32), 2)
        pixels.append(np.asarray(image.crop((2, 0, 34, 32))))
    return np.stack(pixels)


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    return export(model, "onnx", tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_onnx_runtime_gives_the_models_answers(
    count: int, model: Model, files: list[Path], written: list[Exported]
) -> None:
    expected = torch.cat([logits for logits in model.logits_each(files[:count]) if isinstance(logits, Tensor)])
    prepared = torch.stack([model.transform(read_image(path)) for path in files[:count]])
    normalised, pixels = (ort.InferenceSession(item.path) for item in written)
    given = torch.from_numpy(normalised.run(None, {"images": prepared.numpy()})[0])
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    given = torch.from_numpy(pixels.run(None, {"images": from_files(files[:count])})[0])
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    about = pixels.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["cat", "dog"]
    assert json.loads(about["preprocessing"])["crop"] == 32
    assert json.loads(about["input"]) == "uint8 RGB (batch, 32, 32, 3)"


@pytest.fixture(scope="module")
def programs(model: Model, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    return export(model, "torch-export", tmp_path_factory.mktemp("programs"), files)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_torch_export_gives_the_models_answers(
    count: int, model: Model, files: list[Path], programs: list[Exported]
) -> None:
    expected = torch.cat([logits for logits in model.logits_each(files[:count]) if isinstance(logits, Tensor)])
    prepared = torch.stack([model.transform(read_image(path)) for path in files[:count]])
    about = {METADATA: ""}
    normalised, pixels = (item.path for item in programs)
    given = torch.export.load(normalised, extra_files=about).module()(prepared)
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    given = torch.export.load(pixels).module()(torch.from_numpy(from_files(files[:count])))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    assert json.loads(json.loads(about[METADATA])["class_names"]) == ["cat", "dog"]


def test_the_command_prints_the_agreement(trained: Path, folders: Path, tmp_path: Path, capsys: Any) -> None:
    main(["export", str(trained), "--to", "onnx", "--out", str(tmp_path), "--images", str(folders)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/model.onnx: takes float32 (batch, 3, 32, 32), normalised; gives logits (batch, 2)"
    assert lines[1].startswith("    the same classes for 20 images; logits differ by at most ")
    assert lines[2].startswith(f"{tmp_path}/model-uint8.onnx: takes uint8 RGB (batch, 32, 32, 3)")
    assert float(lines[3].split()[-1]) < 1e-4


class Moody(nn.Module):
    """Its answer depends on something that no exporter sees: a number that Python has worked out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits + float(np.asarray(images.detach()).astype(np.float64).std())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("onnx", "its logits differ from the model's by up to .*, more than 1e-03. Try the other"),
        ("torch-export", "(its logits differ from|torch-export cannot follow)"),
    ],
)
def test_what_does_not_agree_is_not_left_behind(kind: str, reason: str, model: Model, tmp_path: Path) -> None:
    moody = copy.copy(model)
    moody.network = nn.Sequential(Moody(model.network))
    with pytest.raises(ModelError, match=f"model.* is not written: {reason}"):
        export(moody, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_images_and_unknown_kinds_are_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--to tflite: expected onnx or torch-export."):
        export(model, "tflite", tmp_path)
    with pytest.raises(DataError, match="gone.jpg: no such file"):
        export(model, "onnx", tmp_path, ["gone.jpg"])


def test_it_is_compared_on_any_number_of_images_and_leaves_the_model_as_it_is(
    model: Model, files: list[Path], programs: list[Exported], tmp_path: Path
) -> None:
    assert [item.images for item in programs] == [20, 20]
    before = model.predict(files)
    assert [item.images for item in export(model, "torch-export", tmp_path, files[:1])] == [1, 1]
    assert model.predict(files) == before


def test_images_that_are_not_there_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none/\\*.jpg: no file matches this pattern."):
        main(["export", str(trained), "--to", "onnx", "--out", str(tmp_path), "--images", f"{tmp_path}/none/*.jpg"])
