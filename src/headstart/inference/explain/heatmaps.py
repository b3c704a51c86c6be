"""Heat maps (HiResCAM) of the image regions that a model's prediction depends on."""

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
from headstart.inference.explain.feature_map import find_target_layer
from headstart.utils.errors import ConfigError, DataError, format_error, suggestion

if TYPE_CHECKING:
    from headstart.data.image_io import ImageLike
    from headstart.inference.model import Model

BATCH = 8  # images per batch; see model.CPU_BATCH
COLOURS = "inferno"  # matplotlib colour map from black to yellow that suits colour-blind readers and print
OPACITY = (0.35, 0.6)  # at heat 0 and 1


@dataclass(frozen=True)
class Heatmap:
    """A heat map of a class for an image.

    Attributes:
        class_name: the class.
        heat: float32 in [0, 1], shape (crop, crop). 1 marks the strongest evidence for the class, 0 the absence of
            evidence for it. Values compare regions of one image, and do not show how confident the model is. All are 0
            if nothing in the image is evidence for the class.
        crop: the image as the network sees it: RGB, resized and cropped to crop × crop pixels.
    """

    class_name: str
    heat: NDArray[np.float32]
    crop: Image.Image


def explain(
    model: Model, images: ImageLike | Sequence[ImageLike], class_names: str | Sequence[str] | None = None
) -> list[Heatmap]:
    """Compute heat maps that show which image regions are evidence for a class; see `Explainer`.

    Args:
        model: the model, which is not changed.
        images: a path or a PIL image, or a sequence of what `Model.predict` takes.
        class_names: the class to explain for each image, or one for all; None takes the predicted classes.

    Returns:
        A heat map for each image.

    Raises:
        ConfigError: the model has no such class, the numbers of classes and images differ, or the package grad-cam is
            missing.
        DataError: an image cannot be read, or its logits are not finite.
        ModelError: the network has no feature map.
    """
    explainer = Explainer(model)
    several: Any = [images] if isinstance(images, str | Path | Image.Image) else images
    return explainer.explain([explainer.crop(image) for image in several], class_names)


class Explainer:
    """Compute heat maps of a model's classes.

    Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) sums the channels of the last feature map. Each channel is
    weighted by the gradient of the class's logit, averaged over positions. Here the gradient is not averaged (HiResCAM,
    Draelos and Carin, 2020, arXiv:2011.08891), so each position has its own weight.

    For networks that average their last feature map, such as ResNets, both are the same. Other networks treat positions
    differently: an averaged gradient would highlight similar regions that the network ignores.

    Args:
        model: the model, which is not changed.

    Attributes:
        model: the model.
        target_layer: the layer whose feature map is used.

    Raises:
        ConfigError: the package grad-cam is missing.
        ModelError: the network has no feature map.
    """

    def __init__(self, model: Model) -> None:
        self._method, self._target = _import_grad_cam()
        self._pixels, self._normalise = pixel_transform(model.preprocessing), Normalisation(model.preprocessing)
        self.model, self.target_layer = model, find_target_layer(model)

    def crop(self, image: ImageLike) -> Image.Image:
        """Return an image as the network sees it: RGB, crop × crop pixels.

        Raises:
            DataError: it cannot be read.
        """
        return Image.fromarray(self._pixels(as_image(image)).movedim(0, -1).numpy())

    def explain(self, crops: Sequence[Image.Image], class_names: str | Sequence[str] | None = None) -> list[Heatmap]:
        """Compute heat maps of images that `crop` has returned; the rest is as in the function `explain`."""
        classes = None if class_names is None else self._indices(class_names, len(crops))
        heatmaps = []
        for start in range(0, len(crops), BATCH):
            batch = crops[start : start + BATCH]
            heat, indices = self._compute_heat(batch, classes and classes[start : start + BATCH])
            names = [self.model.class_names[index] for index in indices]
            heatmaps += [Heatmap(*parts) for parts in zip(names, heat, batch, strict=True)]
        return heatmaps

    def _indices(self, class_names: str | Sequence[str], images: int) -> list[int]:
        """Return the index of the class to explain for each image."""
        names = [class_names] * images if isinstance(class_names, str) else class_names
        if len(names) != images:
            raise ConfigError(f"{len(names)} classes for {images} images: expected one for each, or one name for all.")
        known = {name: index for index, name in enumerate(self.model.class_names)}
        for name in names:
            if name not in known:
                hint = suggestion(name, known) or f" Its classes are {', '.join(known)}."
                raise ConfigError(f"{self.model.path} has no class '{name}'.{hint}")
        return [known[name] for name in names]

    def _compute_heat(
        self, crops: Sequence[Image.Image], classes: list[int] | None
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Return heat of shape (images, crop, crop), and the index of the class that is explained for each image."""
        targets = classes and [self._target(index) for index in classes]
        with torch.inference_mode(False), torch.enable_grad(), _detached_at(self.target_layer.module):
            pixels = torch.stack([v2.functional.pil_to_tensor(crop) for crop in crops])
            images = self._normalise(pixels).to(self.model.device, memory_format=torch.channels_last)
            cam = self._method(self.model.network, [self.target_layer.module], self.target_layer.reshape)
            try:
                heat: NDArray[np.float32] = cam(images, targets)
                logits: Tensor = cam.outputs.detach()
            finally:
                cam.activations_and_grads.release()  # removes its hooks from the network
        if not logits.isfinite().all():
            raise DataError(f"{self.model.path}: its logits are not finite. Training diverged: try a lower lr.")
        peaks = heat.max(axis=(1, 2), keepdims=True)
        # The maximum of each image becomes 1; images without heat stay 0.
        heat = np.divide(heat, peaks, out=np.zeros_like(heat), where=peaks > 0)
        return heat, classes or logits.argmax(dim=1).tolist()


def _import_grad_cam() -> tuple[Any, Any]:
    """Return the HiResCAM and target classes of the package grad-cam, which takes seconds to import.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        library = importlib.import_module("pytorch_grad_cam")
        targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    except ImportError as error:
        raise ConfigError(
            f"explanations need the package grad-cam, which cannot be imported ({format_error(error)}): pip install "
            f"grad-cam"
        ) from None
    return library.HiResCAM, targets.ClassifierOutputTarget


@contextmanager
def _detached_at(module: nn.Module) -> Iterator[None]:
    """Make gradients start at a module's output, so that the layers before it need no backward pass."""

    def detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001 (the signature of a forward hook)
        return output.detach().requires_grad_().clone()  # a copy, because the next layer may change it in place

    handle = module.register_forward_hook(detach)
    try:
        yield
    finally:
        handle.remove()


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Blend a heat map over an image in greyscale, so that all colour shows heat.

    Args:
        image: RGB image, such as `Heatmap.crop`.
        heat: float32 in [0, 1], shape (height, width).

    Returns:
        An RGB image of the same size: dark where heat is 0, yellow where it is 1.
    """
    import matplotlib as mpl  # imported late: heat maps as arrays do not need it

    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    coloured = mpl.colormaps[COLOURS](heat)[..., :3] * 255
    opacity = np.interp(heat, (0, 1), OPACITY)[..., None]
    return Image.fromarray(np.rint(grey * (1 - opacity) + coloured * opacity).astype(np.uint8))
