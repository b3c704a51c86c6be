"""The backbones that may be chosen, and what is known of each before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headstart.advice.names import read_name
from headstart.advice.result import Candidate
from headstart.config.schema import Model
from headstart.models.backbone import Backbone, build_backbone, find_torchvision_weights
from headstart.utils.errors import ConfigError, ModelError

log = logging.getLogger(__name__)
MEGABYTE = 1e6
# A file of the Hugging Face hub, and the safetensors file that timm prefers to it.
SAFE = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}


@dataclass(frozen=True)
class Pretrained:
    """What a library says about the weights that it offers.

    Attributes:
        file: where they are on this disk; None if they are not.
        megabytes: size of the file, or of the download, in 10^6 bytes.
        licence: as the library states it; None if it does not.
        published: top-1 accuracy on ImageNet-1k that the library states, a fraction; None if it states none.
    """

    file: Path | None
    megabytes: float
    licence: str | None
    published: float | None


def find_candidates(models: Sequence[str], *, fetch: bool) -> list[Candidate]:
    """Return a candidate for each name; one that cannot be had says why in `problem`.

    Without `fetch`, nothing is downloaded and no network is needed.

    Args:
        models: names; see `read_name`. A name that is repeated counts once.
        fetch: whether to download the weights that are not on this disk.

    Raises:
        ConfigError: there is no name.
        ModelError: none of the backbones can be had; the message has the reason of each.
    """
    if not models:
        raise ConfigError(
            "advise.models is empty: name at least one backbone, such as advise.models=resnet18,resnet50."
        )
    candidates = [_find(name, fetch=fetch) for name in dict.fromkeys(models)]
    if all(candidate.problem for candidate in candidates):
        reasons = "".join(f"\n  {candidate.name}: {candidate.problem}" for candidate in candidates)
        raise ModelError(f"none of the backbones can be measured:{reasons}")
    return candidates


def _find(name: str, *, fetch: bool) -> Candidate:
    candidate = Candidate(name, ())
    try:
        choice = read_name(name)
        candidate = replace(candidate, overrides=choice.overrides, model=choice.model)
        if choice.model.library == "headstart" or choice.model.weights != "default":
            return _local(candidate, choice.model)
        return _pretrained(candidate, choice.model, fetch=fetch)
    except ModelError as error:
        # torchvision's message ends with all of its names, which is too long for a row.
        return replace(candidate, problem=str(error).partition(" There are ")[0])


def _local(candidate: Candidate, model: Model) -> Candidate:
    """Return what is known of a network with weights from a file, the package's own, or random ones.

    The file is read, so that one that does not fit is known at once.
    """
    backbone = build_backbone(model.library, model.name, model.weights)
    known = _described(candidate, backbone)
    if model.weights == "default":
        return replace(known, licence="MIT")  # that of the package
    if model.weights is None:
        return known
    known = replace(known, megabytes=Path(model.weights).stat().st_size / MEGABYTE)
    if model.library == "torchvision":
        from torchvision import models

        entry = find_torchvision_weights(models, model.name, model.weights)
        known = replace(known, published=_published(entry) if entry else None)
    return known


def _pretrained(candidate: Candidate, model: Model, *, fetch: bool) -> Candidate:
    """Return what is known of a network with the weights that its library offers."""
    backbone = _outline(model)
    found = _torchvision(model.name) if model.library == "torchvision" else _timm(model.name, backbone)
    known = replace(
        _described(candidate, backbone), megabytes=found.megabytes, licence=found.licence, published=found.published
    )
    if found.file is None and not fetch:
        size = f"{found.megabytes:,.0f} MB"
        return replace(known, problem=f"not on this machine: {size} to download; advise.fetch=true fetches it")
    if found.file is None:
        log.info("downloading %s: %.0f MB", candidate.name, found.megabytes)
        try:
            build_backbone(model.library, model.name, "default")
        except ModelError as error:
            return replace(known, problem=str(error))
    return known


def _outline(model: Model) -> Backbone:
    """Build a network without memory for its weights."""
    try:
        with torch.device("meta"):
            return build_backbone(model.library, model.name, None)
    except NotImplementedError:  # RegNets compute their widths with tensors
        return build_backbone(model.library, model.name, None)


def _described(candidate: Candidate, backbone: Backbone) -> Candidate:
    return replace(
        candidate,
        parameters=sum(parameter.numel() for parameter in backbone.module.parameters()),
        megabytes=_bytes(backbone) / MEGABYTE,
        image_size=backbone.preprocessing.crop,
        licence=backbone.licence,
    )


def _bytes(backbone: Backbone) -> int:
    return sum(tensor.nbytes for tensor in backbone.module.state_dict().values())


def _torchvision(name: str) -> Pretrained:
    from torchvision import models

    entry = find_torchvision_weights(models, name, "default")
    file = _file(Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name)
    size = file.stat().st_size if file else entry.meta["_file_size"] * 2**20  # torchvision counts in 2^20 bytes
    return Pretrained(file, size / MEGABYTE, entry.meta.get("license"), _published(entry))


def _published(entry: Any) -> float | None:
    accuracy = entry.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return None if accuracy is None else float(accuracy) / 100


def _timm(name: str, backbone: Backbone) -> Pretrained:
    import timm

    cfg: Any = timm.models.get_pretrained_cfg(name)  # None for a network that a user has registered
    if cfg is None or not cfg.has_weights:
        raise ModelError(f"timm has no pretrained weights for {name}: use timm/{name}@FILE.")
    file = _file(Path(cfg.file)) if cfg.file else _downloaded(cfg)
    # timm does not know the size of a download: that of the backbone and of its classifier, in float32.
    size = file.stat().st_size if file else _bytes(backbone) + 4 * backbone.num_features * cfg.num_classes
    return Pretrained(file, size / MEGABYTE, cfg.license, None)


def _downloaded(cfg: Any) -> Path | None:
    """Return the file of timm's weights in the cache of the Hugging Face hub, or of torch.hub; None without one."""
    if not cfg.hf_hub_id:
        return _file(Path(torch.hub.get_dir()) / "checkpoints" / Path(cfg.url).name)
    import huggingface_hub

    repository, _, revision = cfg.hf_hub_id.partition("@")
    file = cfg.hf_hub_filename or "pytorch_model.bin"
    for name in (SAFE.get(file, file), file):
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(path, str):
            return Path(path)
    return None


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None
