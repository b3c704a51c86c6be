"""Speed of predicting a folder of JPEG files, against the forward pass of the same network over decoded images.

    python benchmarks/predict.py
    python benchmarks/predict.py --root ../shared/data/emergency-vehicles/images --model RUN

Prints the images per second of both and their ratio; the peak memory with a quarter of the images and with all; and how
long `headstart predict` takes for one photograph beside importing torch and torchvision. Without --root, photographs
of 500 x 375 pixels are made; without --model, a MobileNetV2 with random weights.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import build_parser, command_seconds, write_smooth_image

COUNT = 1000
CLASS_NAMES = ("first", "second")


def make_model(folder: Path) -> None:
    from collections import OrderedDict
    from dataclasses import asdict

    from torch import nn

    from headstart.models.backbone import build_backbone
    from headstart.models.model_folder import save_model

    backbone = build_backbone("torchvision", "mobilenet_v2", None)
    network = nn.Sequential(OrderedDict(backbone=backbone.module, head=nn.Linear(backbone.num_features, 2)))
    description = {
        "model": backbone.description,
        "head": {"name": "linear"},
        "class_names": CLASS_NAMES,
        "preprocessing": asdict(backbone.preprocessing),
        "freeze": True,
    }
    save_model(folder, network.state_dict(), description)


def bare_seconds(model: Any, files: list[str]) -> float:
    """Time the forward pass over batches that are decoded beforehand, a few at a time."""
    import torch

    from headstart.data.image_io import read_image
    from headstart.inference.model import CPU_BATCH, GPU_BATCH

    size = CPU_BATCH if model.device.type == "cpu" else GPU_BATCH
    seconds = 0.0
    for start in range(0, len(files), size):
        images = torch.stack([model.transform(read_image(file)) for file in files[start : start + size]])
        begin = time.perf_counter()
        model.logits(images)
        seconds += time.perf_counter() - begin
    return seconds


def predict_seconds(model: Any, files: list[str]) -> float:
    begin = time.perf_counter()
    answers = sum(1 for _ in model.predict_each(files))
    assert answers == len(files)
    return time.perf_counter() - begin


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, path = (
            (arguments.root or Path(name, "images")).resolve(),
            (arguments.model or Path(name, "model")).resolve(),
        )
        if arguments.root is None:
            rng = np.random.default_rng(0)
            for index in range(COUNT):
                write_smooth_image(root / f"{index}.jpg", rng, (32, 24), (500, 375))
        if arguments.model is None:
            make_model(path)
        import headstart

        model = headstart.load(path)
        files = sorted(str(file) for file in root.iterdir())
        predict_seconds(model, files[:64])  # the first batches choose kernels
        few = predict_seconds(model, files[: len(files) // 4])
        few_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = predict_seconds(model, files)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bare = bare_seconds(model, files)
        imports = min(command_seconds(sys.executable, "-c", "import torch, torchvision") for _ in range(3))
        command = (sys.executable, "-c", "from headstart.cli.main import main; main()", "predict", str(path), files[0])
        one = min(command_seconds(*command) for _ in range(3))
    print(f"{len(files)} images on {model.device}")
    print(f"bare forward pass, decoded images  {len(files) / bare:8.1f} images/s")
    print(f"predict                            {len(files) / seconds:8.1f} images/s  {bare / seconds:.2f} of bare")
    print(f"peak memory, {len(files) // 4} images in {few:.1f} s  {few_memory / 1024:8.0f} MiB")
    print(f"peak memory, {len(files)} images        {memory / 1024:8.0f} MiB")
    print(f"one photograph, whole process      {one:8.1f} s, {one - imports:+.1f} s beside torch and torchvision")


if __name__ == "__main__":
    main()
