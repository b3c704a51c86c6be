"""Export of a trained model to ONNX and torch.export, with a comparison of the exported file and the model."""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import headstart
from headstart.cache.engines import has_onnx
from headstart.data.image_io import as_image
from headstart.data.preprocessing import Normalisation, Preprocessing, pixel_transform
from headstart.inference.model import Model
from headstart.utils.errors import ConfigError, ModelError, format_error
from headstart.utils.files import write_atomically

if TYPE_CHECKING:
    from headstart.data.image_io import ImageLike

# Largest error of a logit, relative to the largest logit if that is above 1. Another order of float32 additions costs
# 1e-6 to 1e-5, a wrong graph 1e-1.
TOLERANCE = 1e-3
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
METADATA = "headstart.json"  # name of the metadata within a .pt2 file
GENERATED = 40  # number of images generated for the comparison if none are given
BATCH = 16
Run = Callable[[Tensor], Tensor]


class Exported(NamedTuple):
    """An exported file whose outputs were compared with the model's.

    Attributes:
        path: the file.
        input: a description of its input: dtype and shape.
        images: the number of images that it was compared on.
        difference: the largest absolute error of a logit, relative to the largest logit if that is above 1.
    """

    path: Path
    input: str
    images: int
    difference: float


class FromPixels(nn.Module):
    """A network that scales and normalises its input itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits from uint8 RGB pixels of shape (batch, height, width, 3), already resized and cropped."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def export(model: Model, kind: str, folder: Path, images: Sequence[ImageLike] | None = None) -> list[Exported]:
    """Export a model to two files: for preprocessed tensors (`model`), and for uint8 pixels (`model-uint8`).

    Both take batches of any size and return logits in the order of the class names. Class names and preprocessing are
    in the file's metadata. The caller resizes and crops the images.

    Args:
        model: the model, which is not changed.
        kind: "onnx" or "torch-export".
        folder: the folder of the files; created if it does not exist.
        images: one or more images for the comparison; None generates some.

    Returns:
        The file for tensors and the file for pixels.

    Raises:
        ConfigError: the kind is unknown, or its packages are not installed.
        DataError: an image cannot be read.
        ModelError: the network cannot be exported, or the exported network gives other outputs. Its file is not
            written.
    """
    if kind not in ENDINGS:
        raise ConfigError(f"--to {kind}: expected {' or '.join(ENDINGS)}.")
    if kind == "onnx" and not has_onnx():
        raise ConfigError('--to onnx needs ONNX and its runtime: pip install -e ".[onnx]"')
    crop = model.preprocessing.crop
    pixels = _example_pixels(model.preprocessing, images)
    prepared = Normalisation(model.preprocessing)(pixels)
    expected = torch.cat([model.logits(part) for part in torch.split(prepared, BATCH)])
    network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)
    from_pixels = FromPixels(network, model.preprocessing).eval()
    pixels = pixels.permute(0, 2, 3, 1).contiguous()
    tensors, rgb = f"float32 (batch, 3, {crop}, {crop}), normalised", f"uint8 RGB (batch, {crop}, {crop}, 3)"
    return [
        _write(module, images, expected, folder / f"{name}{ENDINGS[kind]}", kind, metadata(model, description))
        for name, module, images, description in (
            ("model", network, prepared, tensors),
            ("model-uint8", from_pixels, pixels, rgb),
        )
    ]


def _example_pixels(preprocessing: Preprocessing, images: Sequence[ImageLike] | None) -> Tensor:
    """Return images as uint8 of shape (N, 3, crop, crop): the given ones, or generated ones of random colours."""
    transform = pixel_transform(preprocessing)
    if images is None:
        rng = np.random.default_rng(0)
        coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(GENERATED)]
        images = [image.resize((preprocessing.resize * 4 // 3, preprocessing.resize)) for image in coarse]
    return torch.stack([transform(as_image(image)) for image in images])


def metadata(model: Model, description: str) -> dict[str, str]:
    """Return the metadata of an exported file, with each value as JSON; its input is described by dtype and shape."""
    values = {
        "headstart": headstart.__version__,
        "class_names": model.class_names,
        "preprocessing": model.description["preprocessing"],
        "temperature": model.temperature,  # for softmax(logits / temperature): the file returns logits
        "input": description,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _write(
    module: nn.Module, images: Tensor, expected: Tensor, path: Path, kind: str, metadata: Mapping[str, str]
) -> Exported:
    """Write one file atomically, after the written network was loaded and compared with the model."""
    write, load = (_write_onnx, _load_onnx) if kind == "onnx" else (_write_program, _load_program)
    difference = math.inf

    def write_and_compare(temporary: Path) -> None:
        nonlocal difference
        try:
            two = torch.cat([images[:1], images[-1:]])  # from one image, an exporter would fix the batch size
            write(module, two, temporary, metadata)
            run = load(temporary)
            starts = list(range(1, len(images), BATCH))  # one image, then full batches, then the remainder
            pairs = zip(images.tensor_split(starts), expected.tensor_split(starts), strict=True)
            difference = max(_difference(run(batch), logits) for batch, logits in pairs)
        except Exception as error:  # exporters and runtimes may raise anything
            raise ModelError(
                f"{path} is not written: {kind} cannot follow this network ({format_error(error)})."
            ) from error
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{path} is not written: its logits differ from the model's by up to {difference:.1e}, more than "
                f"{TOLERANCE:.0e}. Try the other kind, {' or '.join(sorted(ENDINGS))}."
            )

    write_atomically(path, write_and_compare)
    return Exported(path, json.loads(metadata["input"]), len(images), difference)


def _difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest error of a logit, relative to the largest logit if that is above 1.

    It is infinite if the shape or a predicted class differs.
    """
    if logits.shape != expected.shape or not torch.equal(logits.argmax(dim=1), expected.argmax(dim=1)):
        return math.inf
    return float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))


# --- torch.export --------------------------------------------------------------------------------------------


def _write_program(module: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:  # torch.export.save requires file names to end in .pt2
        torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})


def _load_program(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(images)


# --- ONNX ----------------------------------------------------------------------------------------------------


def _write_onnx(module: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    onnx: Any = importlib.import_module("onnx")
    # The exporter by torch.export takes seconds, the one for `features.engine` half a second. But it supports dynamic
    # batch sizes, and adaptive pooling to an output larger than its input, as in a VGG at 96 pixels.
    torch.onnx.export(
        module,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.save(graph, path)


def _load_onnx(path: Path) -> Run:
    ort: Any = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
