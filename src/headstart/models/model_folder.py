"""Model folder: saving and loading a trained classifier's weights with everything that is needed to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import headstart
from headstart.models.schemas import Checkpoint, ModelFile, check_values
from headstart.utils.errors import ModelError, format_error
from headstart.utils.files import plain, read_json, write_json, write_tensors
from headstart.utils.hashing import description_sha256, file_sha256
from headstart.utils.versions import versions

FORMAT_VERSION = 2
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
# Keys of the description without which the network cannot be built or used.
NEEDED = {"model", "head", "class_names", "preprocessing"}
PARTS = ("backbone.", "head.")  # prefixes of the network's state dict
COMPILED = "_orig_mod."  # torch.compile inserts it into the names of a module's parameters


@dataclass(frozen=True)
class Artifact:
    """The description and the weights of a trained classifier.

    Attributes:
        path: model folder or checkpoint that the classifier was read from.
        description: plain values: `model` (arguments of `build_backbone`), `head`, `class_names`, `preprocessing` and
            optional further keys.
        state: state dict of the network; its names begin with "backbone." or "head.".
    """

    path: Path
    description: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def run_folder(self) -> Path | None:
        """Return the run folder that contains the classifier, or None if it is not in a run folder."""
        path = self.path.resolve()
        folder = path.parent if path.is_dir() else path.parent.parent
        return folder if all((folder / name).is_file() for name in ("config.yaml", "split.csv")) else None


def save_model(folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `model.safetensors` (backbone and head) and `model.json` (how to build and use them).

    Args:
        folder: the model folder; it is created if it does not exist.
        state: state dict of a classifier, compiled or not.
        description: plain values, with at least the keys in `NEEDED`.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network_state(state).items()}
    metadata = {
        **plain(dict(description)),
        "format_version": FORMAT_VERSION,
        "headstart": headstart.__version__,
        "versions": versions(),
    }
    path = folder / WEIGHTS
    write_tensors(path, tensors, {"format": "pt", "description_sha256": description_sha256(metadata)})
    # Written last, so that a model.json never describes weights that are not complete.
    write_json(folder / DESCRIPTION, {**metadata, "sha256": {WEIGHTS: file_sha256(path).hex()}})


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of backbone and head, without the prefix that torch.compile inserts into names."""
    clean = {name.replace(COMPILED, ""): value for name, value in state.items()}
    return {name: value for name, value in clean.items() if name.startswith(PARTS)}


# --- reading -------------------------------------------------------------------------------------------------


def read_artifact(path: str | Path) -> Artifact:
    """Read a trained classifier from a run folder, a model folder, one of its files or a checkpoint, without pickle.

    Raises:
        ModelError: if there is no classifier, or it is damaged, modified, or written by a newer version of headstart.
    """
    source = find_artifact(Path(path))
    if not source.is_dir():
        return _from_checkpoint(source)
    description = _read_description(source / DESCRIPTION)
    weights = source / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{weights} is missing: {DESCRIPTION} beside it describes it. Copy the whole model folder.")
    if file_sha256(weights).hex() != description.pop("sha256").get(WEIGHTS):
        raise ModelError(
            f"{weights} is not the file that {DESCRIPTION} describes: truncated or changed. Copy it again."
        )
    try:
        with safe_open(weights, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"{weights} is no safetensors file ({error}). Copy the model folder again.") from None
    if metadata.get("description_sha256") != description_sha256(description):
        raise ModelError(f"{source / DESCRIPTION} was changed since it was written with {WEIGHTS}. Copy it again.")
    return Artifact(source, description, state)


def find_artifact(path: Path) -> Path:
    """Return the model folder or checkpoint that a path refers to; see `read_artifact`.

    Raises:
        ModelError: if there is none.
    """
    if path.is_dir():
        for folder in (path, path / "model"):
            if (folder / DESCRIPTION).is_file() or (folder / WEIGHTS).is_file():
                return folder
        for checkpoint in (path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt"):
            if checkpoint.is_file():
                raise ModelError(f"{path} is a run that has not ended: it has no model folder yet. Use {checkpoint}.")
        raise ModelError(f"{path} holds no {DESCRIPTION}: expected a run folder, a model folder or a checkpoint.")
    if not path.is_file():
        raise ModelError(f"{path}: no such run folder, model folder or checkpoint.")
    return path.parent if path.name in (DESCRIPTION, WEIGHTS) else path


def _read_description(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"{path} is missing: without it nobody knows the classes. Copy the whole model folder.")
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({format_error(error)}). Copy it again.") from None
    version = description.get("format_version") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise ModelError(f"{path} is no description of headstart's: it has no format_version.")
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path} is of format {version}, written by headstart {description.get('headstart')}; headstart "
            f"{headstart.__version__} reads up to {FORMAT_VERSION}. Install a newer headstart."
        )
    check_values(ModelFile, description, path, ModelError, "Copy it again.")
    return dict(description)


def _from_checkpoint(path: Path) -> Artifact:
    checkpoint = read_checkpoint(path)
    if not has_backbone(checkpoint):
        raise ModelError(
            f"{path} holds the head only, because its run was killed. Resume that run by ckpt_path={path} with the "
            f"settings of the config.yaml beside it: the checkpoints of the resumed run are whole."
        )
    return Artifact(path, dict(checkpoint["hyper_parameters"]), network_state(checkpoint["state_dict"]))


def has_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint contains the backbone, not only the head; see `checkpoints.without_backbone`."""
    return any(name.startswith(PARTS[0]) for name in checkpoint["state_dict"])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint written by headstart onto the CPU, without pickle.

    Raises:
        ModelError: if the file does not exist, is damaged, or was not written by headstart.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such checkpoint. Expected a file such as outputs/.../checkpoints/last.ckpt.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler can raise anything if the file is not a checkpoint
        raise ModelError(
            f"{path} is damaged, or no checkpoint of headstart's: it does not hold tensors and plain values alone "
            f"({type(error).__name__})."
        ) from None
    description = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(description, dict) or not description.keys() >= NEEDED or "state_dict" not in checkpoint:
        raise ModelError(
            f"{path} is no checkpoint of headstart's. To start from a file of weights, use model.weights=PATH."
        )
    check_values(Checkpoint, checkpoint, Path(path), ModelError, "Copy it again.")
    if not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
        raise ModelError(f"{path} is damaged or was changed: its weights are not tensors alone. Copy it again.")
    return checkpoint
