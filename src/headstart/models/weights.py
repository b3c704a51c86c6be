"""Loading a backbone's weights from a file, strictly and without pickle."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.data.preprocessing import Preprocessing
from headstart.utils.errors import ModelError


def load_weights(backbone: nn.Module, path: str | Path, dropped: Sequence[str]) -> None:
    """Loads a file into a backbone; everything but the old classifier must fit.

    Args:
        backbone: a network whose classifier is gone.
        path: a .safetensors file, or one by torch.save that holds tensors only: a state dict, one under
            "state_dict", or one of headstart's own with "backbone." in front.
        dropped: prefixes of the old classifier's entries, which the file may have and which are left out.

    Raises:
        ModelError: the file is missing, damaged or needs pickle, or entries are missing, unknown or of another
            shape; the message names them.
    """
    state = _strip(read_state(path))
    state = {name: value for name, value in state.items() if not name.startswith(tuple(dropped))}
    if state and all(name.startswith("head.") for name in state):
        raise ModelError(f"{path} holds a head only: its run was killed. Resume that run by ckpt_path first.")
    expected = backbone.state_dict()
    problems = [
        *_named("missing", expected.keys() - state.keys()),
        *_named("unknown", state.keys() - expected.keys()),
        *_named(
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
    """The tensors in a .safetensors or torch.save file.

    Raises:
        ModelError: the file is missing, damaged, needs pickle, or holds something else.
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
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} is damaged, or holds more than tensors ({str(error).splitlines()[0]}). "
            f"Save the model's state_dict() alone."
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict, which is names and tensors. Save the model's state_dict().")
    return state


def described_preprocessing(path: str | Path) -> Preprocessing | None:
    """What a file of headstart's own says about its images: a checkpoint itself, or the model.json beside a model.

    Returns:
        The preprocessing that its backbone was trained with, or None for any other file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        beside = path.with_name("model.json")
        described = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        described = loaded.get("hyper_parameters", {})
    found = described.get("preprocessing") if isinstance(described, dict) else None
    return Preprocessing.from_dict(found) if found else None


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network itself has them."""
    prefix = "backbone."
    if any(name.startswith(prefix) for name in state):  # a TransferClassifier's: its head is not wanted
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # torchvision's files of DenseNets are from before 2018, when a layer could be called "norm.1".
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
    return {old.sub(r"\1", name): value for name, value in state.items()}


def _named(what: str, names: Iterable[str]) -> list[str]:
    """One item such as "3 missing: a, b, c", with at most five names; none without names."""
    listed = sorted(names)
    if not listed:
        return []
    more = ", ..." if len(listed) > 5 else ""
    return [f"{len(listed)} {what}: {', '.join(listed[:5])}{more}"]
