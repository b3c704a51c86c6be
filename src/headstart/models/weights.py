"""Loading of a backbone's weights from a file, strictly and without pickle."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.data.preprocessing import Preprocessing
from headstart.models.schemas import Preprocessed, check_values
from headstart.utils.errors import ModelError, format_error
from headstart.utils.files import read_json

REMEDY = "Copy it again, or move it away from the weights."


def load_weights(backbone: nn.Module, path: str | Path, removed: Sequence[str]) -> None:
    """Load weights from a file into a backbone; everything except the old classifier must match.

    Args:
        backbone: a network whose classifier was removed.
        path: a .safetensors file, or a file by torch.save that contains tensors only. It holds a state dict, or a
            state dict under the key "state_dict", or names with the prefix "backbone." if headstart has written it.
        removed: prefixes of the old classifier's entries, which are ignored if the file has them.

    Raises:
        ModelError: if the file is missing, is damaged or needs pickle, or if entries are missing, unknown or of
            another shape; the message names them.
    """
    state = _rename(read_state(path))
    state = {name: value for name, value in state.items() if not name.startswith(tuple(removed))}
    if state and all(name.startswith("head.") for name in state):
        raise ModelError(f"{path} holds a head only: its run was killed. Resume that run by ckpt_path first.")
    expected = backbone.state_dict()
    problems = [
        *_format_names("missing", expected.keys() - state.keys()),
        *_format_names("unknown", state.keys() - expected.keys()),
        *_format_names(
            "of another shape",
            (
                f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in expected.keys() & state.keys()
                if state[name].shape != expected[name].shape
            ),
        ),
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit {type(backbone).__name__}: {'; '.join(problems)}. Is it another network's file?"
        )
    backbone.load_state_dict(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors or torch.save file onto the CPU.

    Raises:
        ModelError: if the file is missing, is damaged, needs pickle, or contains no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights. Expected default, null or a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged or no safetensors file ({error}). Copy it again.") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The unpickler raises whatever a damaged file leads it to, such as an IndexError.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path} is damaged, or holds more than tensors ({reason}). Save the model's state_dict() alone."
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict, which is names and tensors. Save the model's state_dict().")
    return state


def read_preprocessing(path: str | Path) -> Preprocessing | None:
    """Read the preprocessing that belongs to a weights file written by headstart.

    It is part of a checkpoint, and in the model.json beside a .safetensors file.

    Returns:
        The preprocessing that the backbone was trained with, or None for any other file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        path = path.with_name("model.json")
        try:
            description = read_json(path) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is damaged ({format_error(error)}). {REMEDY}") from None
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        description = loaded.get("hyper_parameters", {})
    preprocessing = description.get("preprocessing") if isinstance(description, dict) else None
    if not preprocessing:
        return None
    check_values(Preprocessed, preprocessing, path, ModelError, REMEDY)
    return Preprocessing.from_dict(preprocessing)


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with the names that the network itself uses, and without a head."""
    prefix = "backbone."
    if any(name.startswith(prefix) for name in state):  # written by headstart: leave the head out
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # torchvision's DenseNet files date from before 2018, when a layer could be called "norm.1".
    old_name = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
    return {old_name.sub(r"\1", name): value for name, value in state.items()}


def _format_names(problem: str, names: Iterable[str]) -> list[str]:
    """Return one item such as "3 missing: a, b, c", with at most five names; return no item if there are no names."""
    listed = sorted(names)
    if not listed:
        return []
    more = ", ..." if len(listed) > 5 else ""
    return [f"{len(listed)} {problem}: {', '.join(listed[:5])}{more}"]
