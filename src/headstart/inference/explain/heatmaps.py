"""Where in an image a model sees a class: heat maps by the gradients of the class's logit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from headstart.data.image_io import as_image
from headstart.data.preprocessing import Normalisation, pixel_transform
from headstart.inference.explain.feature_map import find_place
from headstart.utils.errors import ConfigError, DataError, brief, suggestion

if TYPE_CHECKING:
    from headstart.data.image_io import ImageLike
    from headstart.inference.model import Model

BATCH = 8  # images at a time; see model.CPU_BATCH
COLOURS = "inferno"  # of matplotlib's: from black through red to yellow, for colour-blind eyes and in print, too
OPACITY = (0.35, 0.6)  # of the coldest and the hottest places


@dataclass(frozen=True)
class Heatmap:
    """What in an image speaks for a class.

    Attributes:
        class_name: the class.
        heat: float32 in [0, 1], of shape (crop, crop): 1 where the image says most for the class, 0 where it says
            least, nothing or something against it. It compares the places of one image and does not tell how sure the
            model is. 0 everywhere if nothing speaks for the class.
        crop: the image as the network sees it: RGB, resized and cut out, crop × crop pixels.
    """

    class_name: str
    heat: NDArray[np.float32]
    crop: Image.Image


def explain(
    model: Model, images: ImageLike | Sequence[ImageLike], class_names: str | Sequence[str] | None = None
) -> list[Heatmap]:
    """Tells which parts of images speak for a class; see `Explainer`.

    Args:
        model: it stays as it is.
        images: a path or a PIL image, or several of what `Model.predict` takes.
        class_names: the class to look for in each image, or one for all; None takes the predicted ones.

    Returns:
        A heat map for each image.

    Raises:
        ConfigError: the model has no such class, there are more or fewer classes than images, or the package grad-cam
            is missing.
        DataError: an image cannot be read, or the model's answer to it is not a number.
        ModelError: the network makes no map of an image.
    """
    explainer = Explainer(model)
    several: Any = [images] if isinstance(images, str | Path | Image.Image) else images
    return explainer.explain([explainer.crop(image) for image in several], class_names)


class Explainer:
    """Makes heat maps of a model.

    Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) takes the last map that a network makes of an image and adds up
    its channels, each times the gradient of the class's logit, averaged over the places. Here the gradient is not
    averaged (HiResCAM, Draelos and Carin, 2020, arXiv:2011.08891): each place has its own. For networks that average
    their last map, such as ResNets, that is the same. Others know places apart: an average would light up whatever
    looks alike, whether the network heeds it there or not.

    Args:
        model: it stays as it is.

    Attributes:
        place: where in the network the map is taken.

    Raises:
        ConfigError: the package grad-cam is missing.
        ModelError: the network makes no map of an image.
    """

    def __init__(self, model: Model) -> None:
        self._method, self._target = _library()
        self._pixels, self._normalise = pixel_transform(model.preprocessing), Normalisation(model.preprocessing)
        self.model, self.place = model, find_place(model)

    def crop(self, image: ImageLike) -> Image.Image:
        """An image as the network sees it: RGB, crop × crop pixels.

        Raises:
            DataError: it cannot be read.
        """
        return Image.fromarray(self._pixels(as_image(image)).movedim(0, -1).numpy())

    def explain(self, crops: Sequence[Image.Image], class_names: str | Sequence[str] | None = None) -> list[Heatmap]:
        """Makes heat maps of images.

        Args:
            crops: what `crop` gives.
            class_names: the class to look for in each image, or one for all; None takes the predicted ones.

        Raises:
            ConfigError: the model has no such class, or there are more or fewer classes than images.
            DataError: the model's answer is not a number.
        """
        classes = None if class_names is None else self._indices(class_names, len(crops))
        heatmaps = []
        for start in range(0, len(crops), BATCH):
            some = crops[start : start + BATCH]
            heat, wanted = self._heat(some, classes and classes[start : start + BATCH])
            names = [self.model.class_names[index] for index in wanted]
            heatmaps += [Heatmap(*parts) for parts in zip(names, heat, some, strict=True)]
        return heatmaps

    def _indices(self, class_names: str | Sequence[str], images: int) -> list[int]:
        """For each image the index of the class to look for."""
        names = [class_names] * images if isinstance(class_names, str) else class_names
        if len(names) != images:
            raise ConfigError(f"{len(names)} classes for {images} images: expected one for each, or one name for all.")
        known = {name: index for index, name in enumerate(self.model.class_names)}
        for name in names:
            if name not in known:
                hint = suggestion(name, known) or f" Its classes are {', '.join(known)}."
                raise ConfigError(f"{self.model.path} has no class '{name}'.{hint}")
        return [known[name] for name in names]

    def _heat(self, crops: Sequence[Image.Image], classes: list[int] | None) -> tuple[NDArray[np.float32], list[int]]:
        """Heat of shape (images, crop, crop), and the classes that it is of."""
        targets = classes and [self._target(index) for index in classes]
        with torch.inference_mode(False), torch.enable_grad(), _beginning_at(self.place.module):
            pixels = torch.stack([v2.functional.pil_to_tensor(crop) for crop in crops])
            images = self._normalise(pixels).to(self.model.device, memory_format=torch.channels_last)
            cam = self._method(self.model.network, [self.place.module], self.place.read)
            try:
                heat: NDArray[np.float32] = cam(images, targets)
                logits: Tensor = cam.outputs.detach()
            finally:
                cam.activations_and_grads.release()  # takes its hooks off the network
        if not logits.isfinite().all():
            raise DataError(f"{self.model.path}: its answer is not a number. Training diverged: try a lower lr.")
        return _scaled(heat), classes or logits.argmax(dim=1).tolist()


def _library() -> tuple[Any, Any]:
    """What we use of the package grad-cam, which takes seconds to import."""
    try:
        library = importlib.import_module("pytorch_grad_cam")
        targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    except ImportError as error:
        raise ConfigError(
            f"explanations need the package grad-cam, which cannot be imported ({brief(error)}): pip install grad-cam"
        ) from None
    return library.HiResCAM, targets.ClassifierOutputTarget


@contextmanager
def _beginning_at(module: nn.Module) -> Iterator[None]:
    """Gradients go back to a module's output and no further: of a frozen network nothing else is computed."""

    def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001 (torch gives them)
        return output.detach().requires_grad_().clone()  # the next layer may change the copy in place

    handle = module.register_forward_hook(begin)
    try:
        yield
    finally:
        handle.remove()


def _scaled(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heat whose peak in each image is 1; where there is none, it stays 0."""
    peaks = heat.max(axis=(1, 2), keepdims=True)
    scaled: NDArray[np.float32] = np.divide(heat, peaks, out=np.zeros_like(heat), where=peaks > 0)
    return scaled


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Lays heat over a photograph, which stays visible in grey: colour tells the heat and nothing else.

    Args:
        image: RGB, such as `Heatmap.crop`.
        heat: float32 in [0, 1], of shape (height, width).

    Returns:
        An RGB image of the same size: dark where there is no heat, yellow where there is most.
    """
    import matplotlib as mpl  # late: who wants the numbers alone need not wait for it

    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    coloured = mpl.colormaps[COLOURS](heat)[..., :3] * 255
    opacity = np.interp(heat, (0, 1), OPACITY)[..., None]
    return Image.fromarray(np.rint(grey * (1 - opacity) + coloured * opacity).astype(np.uint8))
