"""Backbones: pretrained networks from torchvision, timm and headstart without their classifier."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart.data.preprocessing import Preprocessing
from headstart.models.freezing import evaluation_mode
from headstart.models.small_networks import GlyphNet, SimpleCNN
from headstart.models.weights import load_weights, read_preprocessing
from headstart.utils.errors import ModelError, suggestion

CLASSES = 1000  # output width of a classifier for ImageNet-1k


class Backbone(NamedTuple):
    """A network that computes features from images.

    Attributes:
        module: maps float32 images of shape (batch, 3, height, width) to features of shape (batch, num_features).
        num_features: width of the features.
        preprocessing: preprocessing that the weights expect.
        description: arguments of `build_backbone`, without weights, that build the same network again.
        fixed_size: whether it takes images of one size only, as most vision transformers do.
        licence: licence of the pretrained weights, or None if the library does not state it.
    """

    module: nn.Module
    num_features: int
    preprocessing: Preprocessing
    description: dict[str, Any]
    fixed_size: bool = False
    licence: str | None = None


def build_backbone(library: str, name: str, weights: str | None) -> Backbone:
    """Build a network without its classifier.

    Args:
        library: "torchvision", "timm" (needs the extra of that name) or "headstart".
        name: name of the network in that library.
        weights: "default" for the library's pretrained weights, which the library downloads once; None for random
            weights; or the path of a .pth or .safetensors file. A file must match the network except for the old
            classifier. A file written by headstart also determines the preprocessing.

    Raises:
        ModelError: if there is no such network, or the weights are not available or do not match it.
    """
    if library == "torchvision":
        backbone = _build_torchvision(name, weights)
    else:
        backbone = _build_timm(name, weights) if library == "timm" else _build_headstart(name, weights)
    stored = read_preprocessing(weights) if weights not in (None, "default") else None
    return backbone._replace(preprocessing=stored) if stored else backbone


def check_input(backbone: Backbone, image_size: int) -> None:
    """Run the backbone on one black image of this height and width, to detect an unsupported size before training.

    Raises:
        ModelError: if the network does not return features of shape (1, num_features) for an image of this size.
    """
    try:
        with evaluation_mode(backbone.module), torch.no_grad():
            shape = tuple(backbone.module(torch.zeros(1, 3, image_size, image_size)).shape)
        problem = "" if shape == (1, backbone.num_features) else f"its features have the shape {shape}"
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = str(error)
    if problem:
        size = backbone.preprocessing.crop
        raise ModelError(
            f"{backbone.description['name']} does not take images of {image_size} × {image_size}: {problem}. "
            f"Its own size is data.image_size={size}."
        )


# --- torchvision ---------------------------------------------------------------------------------------------


def _build_torchvision(name: str, weights: str | None) -> Backbone:
    from torchvision import models

    names = models.list_models(module=models)  # classification only, without detection, segmentation and video
    if name not in names:
        raise ModelError(
            f"torchvision has no classification network '{name}'.{suggestion(name, names)} "
            f"There are {', '.join(names)}."
        )
    entry = find_torchvision_weights(models, name, weights)
    # Other weights: the preprocessing of torchvision's first weights of a network is that of its paper.
    expected = (entry or next(iter(models.get_model_weights(name)))).transforms()
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": expected.crop_size[0]}  # their position embeddings have this size
    if name in ("googlenet", "inception_v3"):
        # The same architecture for all weights. transform_input converts our normalisation to that of the weights.
        options = {"aux_logits": True, "transform_input": True, "init_weights": False}
    if weights == "default":
        network = _download(
            f"torchvision's weights of {name}",
            f"Put {entry.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}, or name a file by model.weights=PATH",
            lambda: models.get_model(name, weights=entry, **options),
        )
    else:
        network = models.get_model(name, weights=None, **options)
    removed, num_features = _remove_classifier(network)
    if weights not in (None, "default"):
        load_weights(network, str(weights), removed)
    preprocessing = Preprocessing(
        resize=expected.resize_size[0],
        crop=expected.crop_size[0],
        interpolation=expected.interpolation.value,
        mean=tuple(expected.mean),
        std=tuple(expected.std),
    )
    return Backbone(
        network,
        num_features,
        preprocessing,
        {"library": "torchvision", "name": name},
        fixed_size=name.startswith(("vit_", "maxvit")),
        licence=entry.meta.get("license") if entry else None,
    )


def find_torchvision_weights(models: Any, name: str, weights: str | None) -> Any:
    """Return the entry of torchvision's weights enum: the default, or the one with the same file name, or None."""
    choices = models.get_model_weights(name)
    if weights == "default":
        return choices.DEFAULT
    if weights is not None:
        file = Path(weights).name
        return next((choice for choice in choices if Path(choice.url).name == file), None)
    return None


def _remove_classifier(network: nn.Module) -> tuple[list[str], int]:
    """Replace the 1000-way layer by an identity; return the removed prefixes and the number of features.

    The auxiliary classifiers of GoogLeNet and Inception are removed, too.
    """
    removed = []
    for auxiliary in ("aux1", "aux2", "AuxLogits"):  # of GoogLeNet and Inception
        if getattr(network, auxiliary, None) is not None:
            setattr(network, auxiliary, None)
            setattr(network, "aux_logits", False)  # noqa: B010 (mypy types a module's attributes as tensors)
            removed.append(f"{auxiliary}.")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
            network.set_submodule(name, nn.Identity())
            return [*removed, f"{name}."], layer.in_features
        if isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES:
            # SqueezeNet ends in dropout, convolution, ReLU and average pooling. Without the convolution, the average
            # pooling returns features.
            network.set_submodule(name, nn.Identity())
            return [*removed, f"{name}."], layer.in_channels
    raise ModelError(f"{type(network).__name__} has no {CLASSES}-way layer to replace.")


def _download(what: str, remedy: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    """Run a library's own download; if it fails, raise ModelError with what to do without an internet connection."""
    try:
        return fetch()
    except Exception as error:
        # Libraries raise the errors of their HTTP clients; the remedy is the same for all of them.
        raise ModelError(f"{what} could not be downloaded ({type(error).__name__}: {error}). {remedy}.") from error


# --- timm ----------------------------------------------------------------------------------------------------


def _build_timm(name: str, weights: str | None) -> Backbone:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise ModelError('model=timm needs timm: pip install -e ".[timm]"') from None

    if not timm.is_model(name):
        raise ModelError(f"timm has no network '{name}'.{suggestion(name.split('.')[0], timm.list_models())}")
    if weights == "default":
        if not timm.is_model_pretrained(name):
            raise ModelError(f"timm has no pretrained weights for {name}: use model.weights=null or a path.")
        network: Any = _download(
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
    # The width without the classifier is head_hidden_size where it is set; num_features may differ from it.
    width = getattr(network, "head_hidden_size", None) or network.num_features
    return Backbone(
        network,
        int(width),
        preprocessing,
        {"library": "timm", "name": name},
        fixed_size=bool(network.pretrained_cfg.get("fixed_input_size")),
        licence=network.pretrained_cfg.get("license") if weights == "default" else None,
    )


# --- headstart -----------------------------------------------------------------------------------------------


def _build_headstart(name: str, weights: str | None) -> Backbone:
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
    description = {"library": "headstart", "name": name}
    return Backbone(network, network.num_features, preprocessing, description, fixed_size=name == "simple_cnn")
