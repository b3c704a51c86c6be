"""Script that copies a pretrained GlyphNet into the package: `python -m headstart.models.embed_glyphnet RUN`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import load_file

from headstart.utils.files import write_json, write_tensors

WEIGHTS = Path(__file__).with_name("glyphnet.safetensors")
METRICS = ("accuracy", "loss", "top5_accuracy", "macro_accuracy")


def embed(run: Path, path: Path = WEIGHTS) -> None:
    """Copy the backbone of a finished run of `experiment=pretrain_glyphs` into the package, and record its origin."""
    state = load_file(run / "model" / "model.safetensors")
    backbone = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    write_tensors(path, backbone)

    metrics = json.loads((run / "metrics.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    record = {
        "made_by": "python train.py experiment=pretrain_glyphs, then python -m headstart.models.embed_glyphnet RUN",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seed": int(OmegaConf.load(run / "config.yaml").seed),
        "metrics": {f"{s}/{name}": metrics[f"{s}/{name}"] for s in ("train", "val", "test") for name in METRICS},
        "versions": environment["versions"],
    }
    write_json(path.with_suffix(".json"), record)


if __name__ == "__main__":
    embed(Path(sys.argv[1]))
