"""A trained model for other runtimes: ONNX and torch.export, each loaded again and held against the model."""

from __future__ import annotations

import copy
import importlib
import importlib.util
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
from headstart.data.image_io import as_image
from headstart.data.preprocessing import Normalisation, Preprocessing, pixel_transform
from headstart.inference.model import Model
from headstart.utils.errors import ConfigError, ModelError, brief
from headstart.utils.files import write_atomically

if TYPE_CHECKING:
    from headstart.data.image_io import ImageLike

# How far a logit may be from the model's, over the largest of them where that is above 1. Float32 in another order of
# additions costs 1e-6 to 1e-5; a graph that is wrong costs 1e-1.
TOLERANCE = 1e-3
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
METADATA = "headstart.json"  # within a .pt2 file
GENERATED = 40  # images to compare on where there are none
BATCH = 16
Run = Callable[[Tensor], Tensor]


class Exported(NamedTuple):
    """A file that was written and found to agree.

    Attributes:
        path: the file.
        takes: what to give it, in words.
        images: how many it was compared on.
        difference: the largest of any logit from the model's.
    """

    path: Path
    takes: str
    images: int
    difference: float


class FromPixels(nn.Module):
    """A network with scaling and normalisation in front of it.

    Args:
        network: from preprocessed images to logits.
        preprocessing: whose mean and deviation to take.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits for uint8 RGB pixels of shape (batch, height, width, 3), resized and cut already."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def export(model: Model, kind: str, folder: Path, images: Sequence[ImageLike] | None = None) -> list[Exported]:
    """Writes a model twice: for preprocessed tensors (`model`), and for uint8 pixels (`model-uint8`).

    Both take any number of images at once and give logits in the order of the class names; class names and
    preprocessing are in the file's metadata. Resizing and cutting to the square is left to the caller.

    Args:
        model: left as it is.
        kind: "onnx" or "torch-export".
        folder: where the files go; made if it is not there.
        images: to compare on, at least one; None generates some.

    Raises:
        ConfigError: the kind is unknown or its packages are not installed.
        ModelError: an exported network does not give the model's answers; its file is not left there.
    """
    if kind not in ENDINGS:
        raise ConfigError(f"--to {kind}: expected {' or '.join(ENDINGS)}.")
    if kind == "onnx" and not has_onnx():
        raise ConfigError('--to onnx needs ONNX and its runtime: pip install -e ".[onnx]"')
    crop = model.preprocessing.crop
    pixels = example_pixels(model.preprocessing, images)
    prepared = Normalisation(model.preprocessing)(pixels)
    expected = torch.cat([model.logits(part) for part in torch.split(prepared, BATCH)])
    network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)
    from_pixels = FromPixels(network, model.preprocessing).eval()
    tensors, rgb = f"float32 (batch, 3, {crop}, {crop}), normalised", f"uint8 RGB (batch, {crop}, {crop}, 3)"
    return [
        _write(network, prepared, expected, folder / f"model{ENDINGS[kind]}", kind, metadata(model, tensors)),
        _write(
            from_pixels,
            pixels.permute(0, 2, 3, 1).contiguous(),
            expected,
            folder / f"model-uint8{ENDINGS[kind]}",
            kind,
            metadata(model, rgb),
        ),
    ]


def example_pixels(preprocessing: Preprocessing, images: Sequence[ImageLike] | None) -> Tensor:
    """Images as uint8 of shape (N, 3, crop, crop): these, or generated ones of blurred colours with noise.

    Raises:
        DataError: an image cannot be read.
    """
    transform = pixel_transform(preprocessing)
    if images is None:
        rng = np.random.default_rng(0)
        coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(GENERATED)]
        images = [image.resize((preprocessing.resize * 4 // 3, preprocessing.resize)) for image in coarse]
    return torch.stack([transform(as_image(image)) for image in images])


def metadata(model: Model, takes: str) -> dict[str, str]:
    """What an exported file says about itself: values as JSON."""
    about = {
        "headstart": headstart.__version__,
        "class_names": model.class_names,
        "preprocessing": model.description["preprocessing"],
        "temperature": model.temperature,  # the file gives logits; probabilities are softmax(logits / temperature)
        "input": takes,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}


def _write(
    module: nn.Module, given: Tensor, expected: Tensor, path: Path, kind: str, about: Mapping[str, str]
) -> Exported:
    """Writes one file; it comes to its place once it is found to agree."""
    write, load = (_write_onnx, _load_onnx) if kind == "onnx" else (_write_program, _load_program)
    found: list[float] = []

    def write_and_compare(temporary: Path) -> None:
        try:
            two = torch.cat([given[:1], given[-1:]])  # of one image alone, an exporter would fix the number
            write(module, two, temporary, about)
            run = load(temporary)
            sizes = _sizes(len(given))
            pairs = zip(torch.split(given, sizes), torch.split(expected, sizes), strict=True)
            found.append(max(_difference(run(images), logits) for images, logits in pairs))
        except Exception as error:  # what an exporter or a runtime makes of a network is anybody's guess
            raise ModelError(f"{path} is not written: {kind} cannot follow this network ({brief(error)}).") from error
        if not found[0] <= TOLERANCE:
            raise ModelError(
                f"{path} is not written: its logits are up to {found[0]:.1e} away from the model's, more than "
                f"{TOLERANCE:.0e}. Try the other kind, {' or '.join(sorted(ENDINGS))}."
            )

    write_atomically(path, write_and_compare)
    return Exported(path, json.loads(about["input"]), len(given), found[0])


def _sizes(images: int) -> list[int]:
    """How many images to compare at a time: one, then batches, then what is left."""
    return [1, *[BATCH] * ((images - 1) // BATCH), *([left] if (left := (images - 1) % BATCH) else [])]


def _difference(given: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit, over the largest logit where that is above 1; infinite for another class."""
    if given.shape != expected.shape or not torch.equal(given.argmax(dim=1), expected.argmax(dim=1)):
        return math.inf
    return float((given - expected).abs().max() / expected.abs().max().clamp(min=1))


# --- torch.export --------------------------------------------------------------------------------------------


def _write_program(module: nn.Module, images: Tensor, path: Path, about: Mapping[str, str]) -> None:
    program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:  # by its name it would have to end in .pt2
        torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(about))})


def _load_program(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(images)


# --- ONNX ----------------------------------------------------------------------------------------------------


def has_onnx() -> bool:
    """Whether ONNX Runtime and what exports to it are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def _write_onnx(module: nn.Module, images: Tensor, path: Path, about: Mapping[str, str]) -> None:
    onnx: Any = importlib.import_module("onnx")
    # By torch.export: it takes seconds, where the exporter for `features.engine` takes a half; but it follows any
    # number of images, and pooling to more places than there are, as in a VGG at 96 pixels.
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
    onnx.helper.set_model_props(graph, dict(about))
    onnx.save(graph, path)


def _load_onnx(path: Path) -> Run:
    ort: Any = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
