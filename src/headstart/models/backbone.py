"""Pretrained networks without their last layer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart.data.preprocessing import Preprocessing
from headstart.models.small_networks import SimpleCNN
from headstart.models.weights import described_preprocessing, load_weights
from headstart.utils.errors import ModelError, suggestion

CLASSES = 1000  # width of the last layer of every network trained on ImageNet-1k


class Backbone(NamedTuple):
    """A network from images to features.

    Attributes:
        module: from float32 images of shape (batch, 3, height, width) to features of shape
            (batch, num_features).
        num_features: width of the features.
        preprocessing: what the weights expect of an image.
        description: the arguments of `build_backbone` that build the same network again.
        licence: of the weights, as far as the library knows it.
    """

    module: nn.Module
    num_features: int
    preprocessing: Preprocessing
    description: dict[str, Any]
    licence: str | None = None


def build_backbone(library: str, name: str, weights: str | None) -> Backbone:
    """Builds a network and takes its last layer off.

    Args:
        library: "torchvision", "timm" (with the extra of that name) or "headstart".
        name: the network's name in that library.
        weights: "default" for the library's pretrained ones (downloaded once, by its own cache), None for
            random ones, or the path of a .pth or .safetensors file, which must fit in everything but the old
            classifier. A file of headstart's own brings its preprocessing with it.

    Raises:
        ModelError: no such network, or weights that cannot be had or do not fit.
    """
    if library == "torchvision":
        backbone = _torchvision(name, weights)
    else:
        backbone = _timm(name, weights) if library == "timm" else _headstart(name, weights)
    own = described_preprocessing(weights) if weights not in (None, "default") else None
    return backbone._replace(preprocessing=own) if own else backbone


def check_input(backbone: Backbone, image_size: int) -> None:
    """Tries the backbone on one black image, so that a size it does not take is known before training.

    Raises:
        ModelError: the network does not give (1, num_features) for an image of this size.
    """
    module = backbone.module
    was_training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            features = module(torch.zeros(1, 3, image_size, image_size))
        shape = tuple(features.shape)
        problem = "" if shape == (1, backbone.num_features) else f"its features have the shape {shape}"
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = str(error)
    for m in was_training:
        m.training = True
    if problem:
        size = backbone.preprocessing.crop
        raise ModelError(
            f"{backbone.description['name']} does not take images of {image_size} × {image_size}: {problem}. "
            f"Its own size is data.image_size={size}."
        )


# --- torchvision ---------------------------------------------------------------------------------------------


def _torchvision(name: str, weights: str | None) -> Backbone:
    from torchvision import models

    names = models.list_models(module=models)  # classification only, without detection and the like
    if name not in names:
        raise ModelError(
            f"torchvision has no classification network '{name}'.{suggestion(name, names)} "
            f"There are {', '.join(names)}."
        )
    chosen = _torchvision_weights(models, name, weights)
    # Without a choice: torchvision's first weights of a network, whose preprocessing is its paper's.
    expected = (chosen or next(iter(models.get_model_weights(name)))).transforms()
    description = {"library": "torchvision", "name": name}
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": expected.crop_size[0]}  # which their position embeddings are made for
    if name in ("googlenet", "inception_v3"):
        # Built alike whatever the weights. transform_input turns our normalisation into the weights' own.
        options = {"aux_logits": True, "transform_input": True, "init_weights": False}
    if weights == "default":
        network = _downloaded(
            f"torchvision's weights of {name}",
            f"Put {chosen.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}, or name a file by model.weights=PATH",
            lambda: models.get_model(name, weights=chosen, **options),
        )
    else:
        network = models.get_model(name, weights=None, **options)
    dropped, num_features = _remove_classifier(network)
    if weights not in (None, "default"):
        load_weights(network, str(weights), dropped)
    preprocessing = Preprocessing(
        resize=expected.resize_size[0],
        crop=expected.crop_size[0],
        interpolation=expected.interpolation.value,
        mean=tuple(expected.mean),
        std=tuple(expected.std),
    )
    licence = chosen.meta.get("license") if chosen else None
    return Backbone(network, num_features, preprocessing, description, licence)


def _torchvision_weights(models: Any, name: str, weights: str | None) -> Any:
    """The entry of torchvision's list that these weights are: by choice, or by the name of the file."""
    choices = models.get_model_weights(name)
    if weights == "default":
        return choices.DEFAULT
    if weights is not None:
        file = Path(weights).name
        return next((choice for choice in choices if Path(choice.url).name == file), None)
    return None


def _remove_classifier(network: nn.Module) -> tuple[list[str], int]:
    """Makes the 1000-way layer an identity, so that the network gives the features in front of it.

    Returns:
        The prefixes of the state that is gone, and the width of the features.
    """
    dropped = []
    for auxiliary in ("aux1", "aux2", "AuxLogits"):  # GoogLeNet's and Inception's further outputs
        if getattr(network, auxiliary, None) is not None:
            setattr(network, auxiliary, None)
            setattr(network, "aux_logits", False)  # noqa: B010 (mypy takes a module's attributes for tensors)
            dropped.append(f"{auxiliary}.")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
            network.set_submodule(name, nn.Identity())
            return [*dropped, f"{name}."], layer.in_features
        if isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES:
            # SqueezeNet: dropout, convolution, ReLU, average. Averaging first leaves features for any head.
            network.set_submodule(name, nn.Identity())
            return [*dropped, f"{name}."], layer.in_channels
    raise ModelError(f"{type(network).__name__} has no {CLASSES}-way layer to replace.")


def _downloaded(what: str, remedy: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    """Runs a library's own download, with a message that helps where there is no network."""
    try:
        return fetch()
    except Exception as error:
        # A library's hub raises what its HTTP client raises; whatever it is, the remedy is the same.
        raise ModelError(f"{what} could not be downloaded ({type(error).__name__}: {error}). {remedy}.") from error


# --- timm ----------------------------------------------------------------------------------------------------


def _timm(name: str, weights: str | None) -> Backbone:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise ModelError('model=timm needs timm: pip install -e ".[timm]"') from None

    if not timm.is_model(name):
        raise ModelError(f"timm has no network '{name}'.{suggestion(name.split('.')[0], timm.list_models())}")
    if weights == "default":
        if not timm.is_model_pretrained(name):
            raise ModelError(f"timm has no pretrained weights for {name}: use model.weights=null or a path.")
        network: Any = _downloaded(
            f"timm's weights of {name}",
            "Fetch them where there is a network and name the file by model.weights=PATH",
            lambda: timm.create_model(name, pretrained=True, num_classes=0),
        )
    else:
        network = timm.create_model(name, pretrained=False, num_classes=0)
    if weights not in (None, "default"):
        classifiers = network.pretrained_cfg.get("classifier") or ()
        names = (classifiers,) if isinstance(classifiers, str) else classifiers
        load_weights(network, str(weights), [f"{classifier}." for classifier in names])
    expected = timm.data.resolve_model_data_config(network)
    crop = expected["input_size"][-1]
    preprocessing = Preprocessing(
        resize=math.floor(crop / expected["crop_pct"]),
        crop=crop,
        interpolation=expected["interpolation"],
        mean=tuple(expected["mean"]),
        std=tuple(expected["std"]),
    )
    # num_features is not what every network gives once its classifier is off; head_hidden_size is, where set.
    width = getattr(network, "head_hidden_size", None) or network.num_features
    licence = network.pretrained_cfg.get("license") if weights == "default" else None
    return Backbone(network, int(width), preprocessing, {"library": "timm", "name": name}, licence)


# --- headstart -----------------------------------------------------------------------------------------------


def _headstart(name: str, weights: str | None) -> Backbone:
    from headstart.models.small_networks import GlyphNet

    networks: dict[str, tuple[Callable[[], Any], Preprocessing]] = {
        "simple_cnn": (SimpleCNN, Preprocessing(224, 224, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        "glyphnet": (GlyphNet, Preprocessing(32, 32, "bilinear", (0.25,) * 3, (0.32,) * 3)),
    }
    if name not in networks:
        raise ModelError(f"headstart has no network '{name}'.{suggestion(name, networks)}")
    build, preprocessing = networks[name]
    network: Any = build()
    if weights == "default":
        if name == "simple_cnn":
            raise ModelError("simple_cnn has no pretrained weights: use model.weights=null or a path.")
        weights = str(Path(__file__).with_name("glyphnet.safetensors"))
    if weights is not None:
        load_weights(network, weights, [])
    return Backbone(network, network.num_features, preprocessing, {"library": "headstart", "name": name})
